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

#[cfg(test)]
mod tests {
    use super::super::tests::Desk;

    #[test]
    fn dimms_that_answer_alike_are_told_from_others() {
        let desk = Desk::new();
        let open = || desk.open(&["a,size=16M"]).unwrap();
        let mut first = open();
        assert_eq!(first.answered(), None);
        first.listen(true);
        first.power_on().unwrap();
        // Health, and the first bytes of the labels; the bus's functions.
        desk.call(&mut first, 0x10, 1, &[]);
        desk.call(&mut first, 0x10, 5, &[0, 0, 0, 0, 8, 0, 0, 0]);
        desk.call(&mut first, 0, 0, &[]);
        let calls = first.answered().unwrap().to_vec();
        assert_eq!(calls.len(), 3);
        let memory = first.bus().memory();
        first.power_off().unwrap();
        drop(first);
        let otherwise = |memory: &_| open().answers_otherwise(&calls, memory).map(|call| call.function);
        assert_eq!(otherwise(&memory), None);

        // A label that was not read, one that was, and a run that ended without a word.
        for (offset, expected) in [(8_u32, None), (7, Some(5))] {
            let mut nvdimms = open();
            nvdimms.listen(true);
            let input = [&offset.to_le_bytes()[..], &1_u32.to_le_bytes(), b"x"].concat();
            desk.call(&mut nvdimms, 0x10, 6, &input);
            assert_eq!(nvdimms.answered(), None, "more than a question");
            drop(nvdimms);
            assert_eq!(otherwise(&memory), expected, "{offset}");
        }
        open().power_on().unwrap();
        assert_eq!(otherwise(&memory), Some(1));
    }
}
