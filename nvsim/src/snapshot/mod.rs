//! Snapshots of machines in files.

pub mod cache;
