//! The neck on /dev/kvm: the only place with ioctls, and no KVM type leaves it.
//!
//! The local APICs are the kernel's and the IOAPIC is the machine's (split irqchip), so interrupts arrive as messages.
//! Each vCPU has a seat of its own. A vCPU's state crosses the edge as [`engine::CpuState`], both ways, in the order
//! that the kernel's side effects dictate (see `state`).
//!
//! Opening /dev/kvm proves nothing: some hosts offer one that cannot execute ordinary kernels. [`fitness()`] finds out.

mod access;
mod clock;
mod fitness;
mod host;
mod kick;
mod partition;
mod processor;
mod state;
mod step;

pub use fitness::{Fitness, fitness};
pub use host::Kvm;

/// The engine's name in messages.
const NAME: &str = "kvm";

/// Makes an errno of an ioctl an engine error.
fn refused(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> engine::Error {
    move |errno| engine::Error::Host {
        what: what.into(),
        source: std::io::Error::from_raw_os_error(errno.errno()),
    }
}
