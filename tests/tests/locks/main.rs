//! Locks, elections and processors: use, faults at one point, random schedules, processes.

mod adversity;
mod faults;
mod guard;
mod logs;
mod rw_lock;
mod schedules;
