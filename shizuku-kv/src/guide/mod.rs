//! Guides, one page for each subject. This module has no items to import.

#[doc = include_str!("deriving.md")]
pub mod deriving {}

#[cfg(feature = "file")]
#[doc = include_str!("folders.md")]
pub mod folders {}

#[doc = include_str!("locks.md")]
pub mod locks {}

#[doc = include_str!("replicas.md")]
pub mod replicas {}

#[doc = include_str!("staying_current.md")]
pub mod staying_current {}
