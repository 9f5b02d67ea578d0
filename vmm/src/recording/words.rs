//! An engine's events in the trace's words, and which of them belong into a trace.

use engine::VcpuId;
use engine::event::{EventKind, FenceKind, FlushKind, StoreKind};
use nvdimm_model::medium;
use trace::Kind;

/// An engine's event in the trace's words.
pub fn kind(event: &EventKind) -> Kind<'_> {
    match event {
        EventKind::Store { addr, data, len, kind } => Kind::Store {
            address: *addr,
            data: &data[..usize::from(*len).min(data.len())],
            kind: match kind {
                StoreKind::Cached => medium::StoreKind::Cached,
                StoreKind::NonTemporal => medium::StoreKind::NonTemporal,
                StoreKind::Locked => medium::StoreKind::Locked,
            },
        },
        EventKind::Load { addr, len } => Kind::Load { address: *addr, len: (*len).into() },
        EventKind::Flush { line, kind } => Kind::Flush {
            address: *line,
            kind: match kind {
                FlushKind::Clflush => medium::FlushKind::Clflush,
                FlushKind::Clflushopt => medium::FlushKind::Clflushopt,
                FlushKind::Clwb => medium::FlushKind::Clwb,
            },
        },
        EventKind::Fence { kind } => match kind {
            FenceKind::Sfence => Kind::Fence(medium::FenceKind::Sfence),
            FenceKind::Mfence => Kind::Fence(medium::FenceKind::Mfence),
            FenceKind::Locked => Kind::Fence(medium::FenceKind::Locked),
            FenceKind::LockedFailed => Kind::Fence(medium::FenceKind::FailedCmpxchg),
            FenceKind::Serialising => Kind::Fence(medium::FenceKind::Serialising),
            FenceKind::Wbinvd => Kind::WriteBackAll,
            FenceKind::Invd => Kind::DropAll,
        },
    }
}

/// Leaves out fences that order nothing: those by the way (locked and serialising instructions) without a flush or a posted
/// store of their vCPU before them, and any before the DIMMs were touched. So a run from a boot snapshot has the events of
/// one from power-up.
#[derive(Debug, Default)]
pub struct Sieve {
    /// Whether a vCPU has flushed or posted something that no fence has followed.
    unfenced: [bool; 8],
    /// Something was done to the DIMMs.
    touched: bool,
}

impl Sieve {
    /// Whether the next event belongs into a trace.
    pub fn keeps(&mut self, vcpu: VcpuId, kind: &Kind<'_>) -> bool {
        let unfenced = &mut self.unfenced[usize::from(vcpu & 7)];
        match kind {
            Kind::Store { kind, .. } => {
                self.touched = true;
                let posted = matches!(kind, medium::StoreKind::NonTemporal | medium::StoreKind::Direct64);
                *unfenced |= posted;
                true
            }
            Kind::Flush { .. } => {
                self.touched = true;
                *unfenced = true;
                true
            }
            Kind::Fence(medium::FenceKind::FailedCmpxchg | medium::FenceKind::Serialising) => *unfenced,
            Kind::Fence(medium::FenceKind::Locked) => std::mem::take(unfenced),
            Kind::Fence(_) => {
                *unfenced = false;
                self.touched
            }
            Kind::WriteBackAll | Kind::DropAll => self.touched,
            _ => true,
        }
    }
}
