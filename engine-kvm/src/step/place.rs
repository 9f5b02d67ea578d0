//! Where the next instruction's events come from: looked up before it runs, and asked for where nobody knows.

use engine::VcpuId;
use engine::event::FenceKind;
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress};

use super::walk::{Paging, Want};
use super::{Events, PAGE, Stepper, Watch, effects};

impl Stepper {
    /// The instruction that was prepared makes events in a place that is not known: it is not to run before somebody was
    /// asked. Otherwise its events get the place's number, or 0 where nobody has told.
    pub(crate) fn is_lost(&mut self, vcpu: VcpuId, watch: &Watch, events: &Events) -> bool {
        let Some(begun) = self.begun.as_ref().filter(|_| watch.places) else { return false };
        let fence = effects::fence_kind(&begun.instruction);
        let speaks = !begun.pieces.is_empty() || matches!(fence, Some(FenceKind::Sfence | FenceKind::Mfence));
        if !speaks {
            return false;
        }
        let asked = self.asked.take() == Some(begun.rip);
        let told = events.take_told(vcpu).filter(|_| asked);
        let found = told
            .or_else(|| events.find_place(begun.rip, &general(&self.regs), |at, len| self.look_at(at, len)));
        if found.is_none() && !asked {
            self.asked = Some(begun.rip);
            self.begun = None;
            return true;
        }
        if let Some(begun) = &mut self.begun {
            begun.place = found.unwrap_or(0);
        }
        false
    }

    /// Up to eight bytes of memory.
    fn look_at(&self, at: u64, len: usize) -> Option<u64> {
        let paging = Paging::of(&self.memory, &self.regs, &self.sregs).supervisor();
        let mut bytes = [0; 8];
        let bytes_here = bytes.get_mut(..len)?;
        let first = len.min((PAGE - at % PAGE) as usize);
        let (here, behind) = bytes_here.split_at_mut(first);
        for (at, part) in [(at, here), (at.wrapping_add(first as u64), behind)] {
            if !part.is_empty() {
                let place = paging.translate(at, Want::Read).ok()?;
                self.memory.read_slice(part, GuestAddress(place)).ok()?;
            }
        }
        Some(u64::from_le_bytes(bytes))
    }
}

/// The general registers in the order of their numbers.
fn general(regs: &kvm_regs) -> [u64; 16] {
    let kvm_regs { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, .. } = *regs;
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15]
}
