//! The guest image's init, and the protocol it speaks with the host.
