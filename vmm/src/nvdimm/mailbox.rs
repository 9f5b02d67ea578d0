//! The mailbox: a page of guest memory through which AML carries `_DSM` calls to the machine, and a doorbell port.
//!
//! | offset | in | out |
//! |---|---|---|
//! | 0 | u32 device handle, 0 for the bus | u32 length of the answer |
//! | 4 | u32 revision | the answer |
//! | 8 | u32 function | |
//! | 12 | u32 length of the input | |
//! | 16 | the input | |
//!
//! The guest may change the page at any time, so it is copied before it is looked at.

use nvdimm_model::dsm::{self, Bus};
use nvdimm_model::{Handle, dsm::UNSUPPORTED};
use serde::{Deserialize, Serialize};

/// Bytes of the page.
pub const PAGE: usize = 4096;
/// Offset of the input.
pub const INPUT: usize = 16;
/// Offset of the answer.
pub const OUTPUT: usize = 4;
const _: () = assert!(INPUT + dsm::MAX_TRANSFER <= PAGE);

/// A call with what was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The call.
    pub call: Call,
    /// The answer.
    pub answer: Vec<u8>,
}

/// A call that the guest made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Whom it asks; [`Handle::ROOT`] is the bus.
    pub handle: Handle,
    /// Revision of the function.
    pub revision: u32,
    /// The function.
    pub function: u32,
    /// Its input.
    pub input: Vec<u8>,
}

impl Call {
    /// Reads a copy of the page. An input that claims to be longer than the page is cut, so that its length is wrong.
    pub fn read(page: &[u8; PAGE]) -> Self {
        let word = |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let end = INPUT.saturating_add(word(12) as usize).min(PAGE);
        Self {
            handle: Handle(word(0)),
            revision: word(4),
            function: word(8),
            input: page[INPUT..end].to_vec(),
        }
    }

    /// What the bus or the DIMM answers.
    pub fn answer(&self, bus: &mut Bus) -> Vec<u8> {
        let (revision, function) = (self.revision.into(), self.function.into());
        if self.handle == Handle::ROOT {
            return bus.dsm(revision, function, &self.input);
        }
        match bus.dimm_mut(self.handle) {
            Some(dimm) => dimm.dsm(revision, function, &self.input),
            None => dsm::status(UNSUPPORTED),
        }
    }
}

/// The bytes to write at the page's start for an answer.
pub fn reply(answer: &[u8]) -> Vec<u8> {
    let answer = &answer[..answer.len().min(PAGE - OUTPUT)];
    [&(answer.len() as u32).to_le_bytes()[..], answer].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_read() {
        let mut page = [0; PAGE];
        for (n, word) in [0x10u32, 1, 5, 8, 0x100, 4].into_iter().enumerate() {
            page[4 * n..][..4].copy_from_slice(&word.to_le_bytes());
        }
        let call = Call::read(&page);
        assert_eq!((call.handle, call.revision, call.function), (Handle::nth(0), 1, 5));
        assert_eq!(call.input, [0, 1, 0, 0, 4, 0, 0, 0]);
        assert_eq!(reply(&[7, 8]), [2, 0, 0, 0, 7, 8]);
        assert_eq!(reply(&[0; 5000]).len(), PAGE);
    }

    proptest! {
        #[test]
        fn nonsense_has_an_answer(head in prop::collection::vec(any::<u8>(), 64), len in 0u32..5000) {
            let mut page = [0xff; PAGE];
            page[..64].copy_from_slice(&head);
            page[12..16].copy_from_slice(&len.to_le_bytes());
            let call = Call::read(&page);
            prop_assert!(call.input.len() <= PAGE - INPUT);
            prop_assert!(!call.answer(&mut Bus::new(Vec::new(), Vec::new())).is_empty());
        }
    }
}
