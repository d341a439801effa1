//! The author and the reason of a write.

use super::KvError;

/// The author of a write and the reason for it, which its entry carries.
///
/// Neither is secret: entries, histories and watches show both, also to other clients of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    author: Option<Box<str>>,
    reason: Option<Box<str>>,
}

impl Metadata {
    /// Maximum size of an author, in bytes.
    pub const MAX_AUTHOR: usize = 64;
    /// Maximum size of a reason, in bytes.
    pub const MAX_REASON: usize = 256;

    /// Creates metadata with an author, a reason, both or neither.
    ///
    /// # Errors
    /// Returns [`KvError::InvalidConfig`] if one is empty, too long, has a control character, or
    /// begins or ends with white space.
    pub fn new(author: Option<&str>, reason: Option<&str>) -> Result<Self, KvError> {
        check("author", author, Self::MAX_AUTHOR)?;
        check("reason", reason, Self::MAX_REASON)?;
        Ok(Self::found(author, reason))
    }

    /// Creates metadata that another client may have written, without a check.
    pub(crate) fn found(author: Option<&str>, reason: Option<&str>) -> Self {
        Self { author: author.map(Box::from), reason: reason.map(Box::from) }
    }

    /// Returns the author. Returns `None` if the write had none.
    pub fn author(&self) -> Option<&str> {
        self.author.as_deref()
    }

    /// Returns the reason. Returns `None` if the write had none.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

fn check(field: &'static str, text: Option<&str>, limit: usize) -> Result<(), KvError> {
    let Some(text) = text else { return Ok(()) };
    let fault = if text.is_empty() {
        "it is empty; leave it out".to_owned()
    } else if text.len() > limit {
        format!("it has {} bytes, and at most {limit} are kept; shorten it", text.len())
    } else if text.chars().any(char::is_control) {
        "it has a control character; use one line of text".to_owned()
    } else if text.trim() != text {
        "it begins or ends with white space; remove that".to_owned()
    } else {
        return Ok(());
    };
    Err(KvError::invalid_config(field, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_a_header_would_change_are_rejected() {
        let long = "x".repeat(Metadata::MAX_AUTHOR + 1);
        for text in ["", " a", "a ", "a\r\nb: c", "a\tb", &long] {
            assert!(Metadata::new(Some(text), None).is_err(), "{text:?}");
        }
        assert!(Metadata::new(None, Some("a\n")).is_err());
        assert!(Metadata::new(None, Some(&long)).is_ok());
        let both = Metadata::new(Some("deploy@ci"), Some("raise the limit: 5 → 6"));
        assert!(both.is_ok_and(|both| both.reason() == Some("raise the limit: 5 → 6")));
    }
}
