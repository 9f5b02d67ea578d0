//! The calls of a guest with their answers, for those who want to know whether other DIMMs would have answered alike.

use nvdimm_model::dsm::BusMemory;
use nvdimm_model::health::Health;

use super::Nvdimms;
use super::mailbox::{Answered, Call};

/// What was heard since somebody began to listen.
#[derive(Debug, Default)]
pub struct Heard {
    calls: Vec<Answered>,
    /// A call has changed a DIMM: it was more than a question.
    changed: bool,
}

impl Nvdimms {
    /// Listens from now on, or no longer.
    pub fn listen(&mut self, on: bool) {
        self.heard = on.then(Heard::default);
    }

    /// A call is answered; what it changed is not yet written down.
    pub(super) fn hear(&mut self, call: &Call, answer: &[u8]) {
        if let Some(heard) = &mut self.heard {
            heard.changed |= self.bus.dimms().iter().any(|(_, dimm)| dimm.is_changed());
            heard.calls.push(Answered { call: call.clone(), answer: answer.to_vec() });
        }
    }

    /// All calls since somebody began to listen; none if nobody did, or if the guest has changed a DIMM by one, or flushed it.
    #[must_use]
    pub fn answered(&self) -> Option<&[Answered]> {
        let hinted = (0..self.backings.len()).any(|dimm| self.hints.count(dimm) > 0);
        self.heard.as_ref().filter(|heard| !heard.changed && !hinted).map(|heard| &*heard.calls)
    }

    /// The first of some calls that these DIMMs, whose power is not on yet, would answer otherwise after it has come on; the last
    /// one, where their bus would remember something else in the end.
    #[must_use]
    pub fn answers_otherwise<'a>(&self, calls: &'a [Answered], memory: &BusMemory) -> Option<&'a Call> {
        let mut bus = self.bus.clone();
        bus.dimms_mut().for_each(|(_, dimm)| Health::power_on(&mut dimm.health));
        let other = calls.iter().find(|heard| heard.call.answer(&mut bus) != heard.answer);
        let remembers = bus.memory() == *memory;
        other.or_else(|| calls.last().filter(|_| !remembers)).map(|heard| &heard.call)
    }
}
