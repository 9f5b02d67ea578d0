//! The neck on /dev/kvm.
