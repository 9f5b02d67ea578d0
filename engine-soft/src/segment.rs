//! Segment descriptors and their loading (SDM vol. 3, ch. 3 and 5).

use engine::state::{Segment, SystemRegisters};

use crate::cpu::{Cpu, control};
use crate::flags::bit;
use crate::trap::{Step, vector};

/// A segment descriptor as it lies in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Linear address of its eight bytes.
    pub at: u64,
    /// The eight bytes.
    pub raw: u64,
}

impl Descriptor {
    /// Accessed bit of a code or data segment.
    const ACCESSED: u32 = 1;

    /// The hidden part it gives, for a selector.
    #[must_use]
    pub const fn segment(&self, selector: u16) -> Segment {
        let raw = self.raw;
        let limit = (raw & 0xFFFF | raw >> 32 & 0xF_0000) as u32;
        let attributes = (raw >> 40 & 0xF0FF) as u32;
        let limit = if attributes & Segment::GRANULARITY != 0 { limit << 12 | 0xFFF } else { limit };
        let base = raw >> 16 & 0xFF_FFFF | raw >> 32 & 0xFF00_0000;
        Segment { selector, base, limit, attributes }
    }

    /// A code segment.
    #[must_use]
    pub const fn is_code(&self) -> bool {
        self.raw >> 40 & 0x18 == 0x18
    }

    /// A conforming code segment.
    #[must_use]
    pub const fn is_conforming(&self) -> bool {
        self.raw >> 40 & 0x1C == 0x1C
    }

    /// A writable data segment.
    #[must_use]
    pub const fn is_writable_data(&self) -> bool {
        self.raw >> 40 & 0x1A == 0x12
    }

    /// A data segment, or a code segment that may be read.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        self.raw >> 40 & 0x10 != 0 && self.raw >> 40 & 0xA != 8
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// Present.
    #[must_use]
    pub const fn is_present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }

    /// 64-bit code.
    #[must_use]
    pub const fn is_long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }

    /// Default size bit.
    #[must_use]
    pub const fn is_big(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }
}

/// The selector part of an error code.
#[must_use]
pub const fn error_code(selector: u16) -> Option<u32> {
    Some(selector as u32 & 0xFFFC)
}

/// A selector that names no descriptor.
#[must_use]
pub const fn is_null(selector: u16) -> bool {
    selector & 0xFFFC == 0
}

/// Requested privilege level.
#[must_use]
pub const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

impl Cpu {
    /// Protected mode without virtual-8086 mode: selectors name descriptors.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        !self.real
    }

    /// EFER.LMA.
    #[must_use]
    pub fn is_long_mode_active(&self) -> bool {
        self.efer & control::EFER_LMA != 0
    }

    /// The descriptor of a selector that is not null; `vector` with the selector as its error code if there is none.
    pub fn descriptor(&mut self, selector: u16, vector: u8) -> Step<Descriptor> {
        let offset = u64::from(selector & 0xFFF8);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdt.base, u64::from(self.gdt.limit))
        } else if self.ldt.attributes & Segment::UNUSABLE != 0 || self.ldt.attributes & Segment::PRESENT == 0
        {
            return self.raise(vector, error_code(selector));
        } else {
            (self.ldt.base, u64::from(self.ldt.limit))
        };
        if offset + 7 > limit {
            return self.raise(vector, error_code(selector));
        }
        let at = base.wrapping_add(offset);
        let at = if self.is_long_mode_active() { at } else { at & 0xFFFF_FFFF };
        let raw = self.load_system(at)?;
        Ok(Descriptor { at, raw })
    }

    /// Sets the accessed bit of a code or data descriptor and gives its hidden part.
    pub(crate) fn accept(&mut self, descriptor: Descriptor, selector: u16) -> Step<Segment> {
        let mut segment = descriptor.segment(selector);
        if segment.attributes & Descriptor::ACCESSED == 0 {
            segment.attributes |= Descriptor::ACCESSED;
            self.store_system(descriptor.at + 5, segment.attributes as u8)?;
        }
        Ok(segment)
    }

    /// Loads ES, SS, DS, FS or GS (`n` in encoding order) by MOV, POP and the like. The caller sets the interrupt shadow
    /// for SS. CS is #UD.
    pub fn load_segment(&mut self, n: u8, selector: u16) -> Step {
        let n = usize::from(n);
        if n > SystemRegisters::GS || n == SystemRegisters::CS {
            return self.ud();
        }
        let segment = self.data_segment(n, selector)?;
        self.segments[n] = segment;
        self.mode_changed();
        Ok(())
    }

    fn data_segment(&mut self, n: usize, selector: u16) -> Step<Segment> {
        let stack = n == SystemRegisters::SS;
        if self.real {
            return Ok(self.real_segment(n, selector));
        }
        if is_null(selector) {
            if !stack {
                return Ok(Segment { selector, base: 0, limit: 0, attributes: Segment::UNUSABLE });
            }
            if !self.long || self.cpl == 3 || rpl(selector) != self.cpl {
                return self.gp();
            }
            return Ok(null_stack(selector, self.cpl));
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        let (rpl, dpl) = (rpl(selector), descriptor.dpl());
        let allowed = if stack {
            rpl == self.cpl && dpl == self.cpl && descriptor.is_writable_data()
        } else {
            descriptor.is_readable() && (descriptor.is_conforming() || rpl <= dpl && self.cpl <= dpl)
        };
        if !allowed {
            return self.raise(vector::GP, error_code(selector));
        }
        if !descriptor.is_present() {
            return self.raise(if stack { vector::SS } else { vector::NP }, error_code(selector));
        }
        self.accept(descriptor, selector)
    }

    /// A segment as real and virtual-8086 mode load it: real mode keeps limit and attributes.
    pub(crate) fn real_segment(&self, n: usize, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.flags.control & bit::VM != 0 {
            return Segment { selector, base, limit: 0xFFFF, attributes: 0xF3 };
        }
        let attributes = self.segments[n].attributes;
        let usable = Segment::PRESENT | Segment::CODE_OR_DATA | 3;
        let attributes = if attributes & Segment::UNUSABLE != 0 { usable } else { attributes };
        Segment { selector, base, attributes, ..self.segments[n] }
    }
}

/// SS after a transfer to an inner level in 64-bit mode: null, of that level.
#[must_use]
pub(crate) const fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, attributes: Segment::UNUSABLE | (cpl as u32) << 5 }
}
