//! Layouts of the kernel's structures, from its type information (Linux Documentation/bpf/btf.rst).

use crate::elf::{u16_at, u32_at};

const MAGIC: u16 = 0xeb9f;

/// Type information: where each type's description begins.
pub struct Btf<'d> {
    types: &'d [u8],
    strings: &'d [u8],
    /// By type number, less one: number 0 is `void`.
    offsets: Vec<usize>,
}

/// A structure or union.
#[derive(Debug, Clone, Copy)]
pub struct Struct {
    /// Its description's offset.
    at: usize,
}

/// A member: where it is, and of what type.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Offset in bytes.
    pub offset: u64,
    kind: u32,
}

mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

impl<'d> Btf<'d> {
    pub fn parse(data: &'d [u8]) -> Option<Self> {
        let header = u32_at(data, 4).filter(|_| u16_at(data, 0) == Some(MAGIC))? as usize;
        let part = |offset: usize, len: usize| {
            let start = header.checked_add(u32_at(data, offset)? as usize)?;
            data.get(start..start.checked_add(u32_at(data, len)? as usize)?)
        };
        let mut btf = Self { types: part(8, 12)?, strings: part(16, 20)?, offsets: Vec::new() };
        let mut at = 0;
        while let Some(info) = u32_at(btf.types, at + 4) {
            btf.offsets.push(at);
            let many = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 0x1f {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * many,
                    kind::ENUM | kind::FUNC_PROTO => 8 * many,
                    _ => 0,
                };
        }
        Some(btf)
    }

    /// The structure of a name.
    pub fn structure(&self, name: &str) -> Option<Struct> {
        let own = |&&at: &&usize| {
            let info = u32_at(self.types, at + 4).unwrap_or(0);
            info >> 24 & 0x1f == kind::STRUCT && self.is_named(at, name)
        };
        self.offsets.iter().find(own).map(|&at| Struct { at })
    }

    /// A member of a structure, also one in a nameless structure or union within it.
    pub fn member(&self, of: Struct, name: &str) -> Option<Member> {
        self.member_within(of, name, 4)
    }

    fn member_within(&self, of: Struct, name: &str, depth: u32) -> Option<Member> {
        let info = u32_at(self.types, of.at + 4)?;
        for n in 0..(info & 0xffff) as usize {
            let at = of.at + 12 + 12 * n;
            let bits = u32_at(self.types, at + 8)?;
            // With the flag, the top byte is the width of a bit field.
            let bits = if info >> 31 == 1 { bits & 0x00ff_ffff } else { bits };
            let member = Member { offset: u64::from(bits / 8), kind: u32_at(self.types, at + 4)? };
            if self.is_named(at, name) {
                return Some(member);
            }
            if u32_at(self.types, at) == Some(0) && depth > 0 {
                let inner = self.struct_of(member).and_then(|s| self.member_within(s, name, depth - 1));
                if let Some(inner) = inner {
                    return Some(Member { offset: member.offset + inner.offset, ..inner });
                }
            }
        }
        None
    }

    /// The structure that a member is, or is an array of.
    pub fn struct_of(&self, member: Member) -> Option<Struct> {
        let mut number = member.kind;
        for _ in 0..16 {
            let at = *self.offsets.get((number as usize).checked_sub(1)?)?;
            match u32_at(self.types, at + 4)? >> 24 & 0x1f {
                kind::STRUCT | kind::UNION => return Some(Struct { at }),
                kind::ARRAY => number = u32_at(self.types, at + 12)?,
                kind::TYPEDEF..=kind::RESTRICT | kind::TYPE_TAG => number = u32_at(self.types, at + 8)?,
                _ => return None,
            }
        }
        None
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        let string = u32_at(self.types, at).and_then(|at| self.strings.get(at as usize..));
        string.and_then(|s| s.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }
}
