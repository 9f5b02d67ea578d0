//! An engine's events in the trace's words, and which of them belong into a trace.

use engine::VcpuId;
use engine::event::{EventKind, FenceKind, FlushKind, StoreKind};
use engine::log::{Deed, Item, Origin};
use nvdimm_model::geometry::LINE;
use nvdimm_model::medium;
use trace::{Event, Kind};

/// Tells an event of an engine's log in the trace's words, with the instructions and the guest time of earlier boots.
pub fn told<R>(item: Item<'_>, (instructions, time): (u64, u64), tell: impl FnOnce(&Event<'_>) -> R) -> R {
    match item {
        Item::Short(origin, short) => {
            let Origin { vcpu, rip, place: chain, deed, ahead, .. } = *origin;
            let number = short.number(origin);
            let bytes = short.data.to_le_bytes();
            let kind = match deed {
                Deed::Store(len, kind) => {
                    let data = bytes.get(..usize::from(len)).unwrap_or(&bytes);
                    Kind::Store { address: short.address(origin), data, kind: store(kind) }
                }
                Deed::Flush(kind) => {
                    Kind::Flush { address: short.address(origin) & !(LINE - 1), kind: flush(kind) }
                }
            };
            let (instruction, time) = (instructions + number, time + number.wrapping_add(ahead));
            tell(&Event { vcpu, instruction, time, rip, chain, kind })
        }
        Item::Other(event) => tell(&Event {
            vcpu: event.vcpu,
            instruction: instructions + event.instruction,
            time: time + event.time,
            rip: event.rip,
            chain: event.place,
            kind: kind(&event.kind),
        }),
    }
}

/// An engine's event in the trace's words.
fn kind(event: &EventKind) -> Kind<'_> {
    match event {
        EventKind::Store { addr, data, len, kind } => Kind::Store {
            address: *addr,
            data: &data[..usize::from(*len).min(data.len())],
            kind: store(*kind),
        },
        EventKind::Load { addr, len } => Kind::Load { address: *addr, len: (*len).into() },
        EventKind::Flush { line, kind } => Kind::Flush { address: *line, kind: flush(*kind) },
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

fn store(kind: StoreKind) -> medium::StoreKind {
    match kind {
        StoreKind::Cached => medium::StoreKind::Cached,
        StoreKind::NonTemporal => medium::StoreKind::NonTemporal,
        StoreKind::Locked => medium::StoreKind::Locked,
    }
}

fn flush(kind: FlushKind) -> medium::FlushKind {
    match kind {
        FlushKind::Clflush => medium::FlushKind::Clflush,
        FlushKind::Clflushopt => medium::FlushKind::Clflushopt,
        FlushKind::Clwb => medium::FlushKind::Clwb,
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
