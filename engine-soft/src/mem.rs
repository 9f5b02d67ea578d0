//! Guest memory as instructions use it.
