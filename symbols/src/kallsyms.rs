//! The names that a kernel keeps of itself, found in its read-only data without any name to go by.
//!
//! The build writes, in one stretch (Linux scripts/kallsyms.c):
//!
//! | | |
//! |---|---|
//! | `num_syms` | a 32-bit number, padded to eight bytes |
//! | `names` | of each symbol, a length (two bytes when above 127) and that many token numbers; padded to eight |
//! | `markers` | 32-bit offsets of each 256th symbol in `names`; padded to eight |
//! | `seqs_of_names` | here in Linux 6.2 and 6.3, and where it was ported back: three bytes a symbol; padded to eight |
//! | `token_table` | 256 strings, each ended by a zero byte; padded to eight |
//! | `token_index` | 256 16-bit offsets into that |
//!
//! All are aligned to eight bytes. `offsets`, 32 bits a symbol, and `relative_base`, 64 bits, stand before this stretch up to Linux 6.3, and behind it since.
//! With absolute per-CPU symbols (all x86-64 kernels before 6.15) an offset is an address if positive, and else counts from
//! the base: base - 1 - offset.

use crate::elf::{Section, u16_at, u32_at, u64_at};
use crate::{Error, KERNEL_HALF, Table};

const TOKENS: usize = 256;
/// Symbols a marker.
const MARKED: usize = 256;
/// Bytes of a sequence number.
const SEQUENCE: usize = 3;
/// No kernel has more symbols, and no name that is longer (KSYM_NAME_LEN is 512 at most).
const SYMBOLS: usize = 1 << 22;
const NAME: usize = 512;

/// Finds and reads the tables in one of these segments.
pub fn read(segments: &[Section<'_>]) -> Result<Table, Error> {
    let mut missing = "token_index";
    for segment in segments {
        let data = segment.data;
        let indexes = (0..data.len().saturating_sub(2 * TOKENS)).step_by(8);
        for index in
            indexes.filter(|&at| u32_at(data, at).is_some_and(|word| word & 0xffff == 0 && word != 0))
        {
            let Some(tokens) = Tokens::at(data, index) else { continue };
            match tokens.names() {
                Ok(names) => match names.addresses() {
                    Some(addresses) => return Ok(names.table(&addresses)),
                    None => missing = "offsets",
                },
                Err(table) => missing = table,
            }
        }
    }
    Err(Error::Kallsyms { missing })
}

/// The strings that names are put together from.
struct Tokens<'d> {
    data: &'d [u8],
    /// Where the table of strings begins.
    table: usize,
    /// Where their offsets begin.
    index: usize,
}

impl<'d> Tokens<'d> {
    /// Tries whether the offsets are here: they rise from zero, and there is a table before them that they fit.
    fn at(data: &'d [u8], index: usize) -> Option<Self> {
        let offset = |n: usize| u16_at(data, index + 2 * n).map(usize::from);
        let rising = (1..TOKENS).all(|n| offset(n - 1) < offset(n));
        let last = offset(TOKENS - 1).filter(|_| rising)?;
        // The last string is not long, and some padding follows it.
        let nearest = index.checked_sub(last + 1)?;
        let starts = (0..=NAME / 8).filter_map(|n| (nearest & !7).checked_sub(8 * n));
        let fits = |table: &usize| {
            let ends = (1..TOKENS).all(|n| offset(n).and_then(|at| data.get(table + at - 1)) == Some(&0));
            let strings = data.get(*table..index).unwrap_or_default();
            let graphic = |byte: &u8| *byte == 0 || byte.is_ascii_graphic();
            // As many strings as there are tokens; what else is zero is padding.
            let zeroes = strings.iter().filter(|byte| **byte == 0).count();
            ends && strings.iter().all(graphic) && (TOKENS..TOKENS + 8).contains(&zeroes)
        };
        let table = starts.into_iter().find(|table| fits(table))?;
        Some(Self { data, table, index })
    }

    fn string(&self, token: u8) -> &'d str {
        let bytes = u16_at(self.data, self.index + 2 * usize::from(token))
            .and_then(|at| self.data.get(self.table + usize::from(at)..self.index))
            .unwrap_or_default();
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    /// The names, by way of the markers; else what was not found.
    fn names(&self) -> Result<Names<'d, '_>, &'static str> {
        // Sequence numbers may stand between the markers and the tokens; how many, only the names tell.
        let ends = (0..=(SEQUENCE * SYMBOLS) / 8).map_while(|n| self.table.checked_sub(8 * n));
        let mut missing = "markers";
        for end in ends {
            let Some((first, last, markers)) = self.markers(end) else { continue };
            // Behind the last marker follow 1 to 256 names.
            let Some(nearest) = first.checked_sub(last) else { continue };
            let starts = (0..=(MARKED * (NAME + 2)) / 8).map_while(|n| (nearest & !7).checked_sub(8 * n));
            for start in starts.filter(|&start| start >= 8) {
                let count = u32_at(self.data, start - 8).map_or(0, |count| count as usize);
                let likely = count.div_ceil(MARKED) == markers && u32_at(self.data, start - 4) == Some(0);
                let between = self.table - end;
                let sequences = between == 0 || between == (SEQUENCE * count).next_multiple_of(8);
                if likely && sequences && count <= SYMBOLS {
                    match Names::read(self, start, count, first) {
                        Some(names) => return Ok(names),
                        None => missing = "names",
                    }
                }
            }
        }
        Err(missing)
    }

    /// Markers that end here: where the first is, which is zero, the last of them, and how many.
    fn markers(&self, end: usize) -> Option<(usize, usize, usize)> {
        let word = |at: usize| u32_at(self.data, at).map(|word| word as usize);
        let mut first = end.checked_sub(4)?;
        // A zero at their end is padding.
        if word(first) == Some(0) {
            first = first.checked_sub(4)?;
        }
        let (end, last) = (first + 4, word(first)?);
        while word(first)? != 0 {
            let before = first.checked_sub(4)?;
            if word(before)? >= word(first)? {
                return None;
            }
            first = before;
        }
        Some((first, last, (end - first) / 4))
    }
}

/// The packed names.
struct Names<'d, 't> {
    tokens: &'t Tokens<'d>,
    /// Where the number of names stands.
    start: usize,
    names: Vec<&'d [u8]>,
}

impl<'d, 't> Names<'d, 't> {
    /// Reads names from `start` on; they must end where the markers begin, and be where the markers say.
    fn read(tokens: &'t Tokens<'d>, start: usize, count: usize, markers: usize) -> Option<Self> {
        let data = tokens.data;
        let mut names = Vec::with_capacity(count);
        let mut at = start;
        for n in 0..count {
            if n % MARKED == 0 && u32_at(data, markers + n / MARKED * 4)? as usize != at - start {
                return None;
            }
            let mut len = usize::from(*data.get(at)?);
            at += 1;
            if len & 0x80 != 0 {
                len = len & 0x7f | usize::from(*data.get(at)?) << 7;
                at += 1;
            }
            names.push(data.get(at..at + len).filter(|_| at + len <= markers)?);
            at += len;
        }
        (at.next_multiple_of(8) == markers).then_some(Self { tokens, start: start - 8, names })
    }

    /// The address of each name, from whichever side they stand.
    fn addresses(&self) -> Option<Vec<u64>> {
        let bytes = (4 * self.names.len()).next_multiple_of(8);
        let behind = self.tokens.index + 2 * TOKENS;
        let before = self.start.checked_sub(8 + bytes);
        before
            .and_then(|offsets| self.addresses_at(offsets, self.start - 8))
            .or_else(|| self.addresses_at(behind, behind + bytes))
    }

    fn addresses_at(&self, offsets: usize, base: usize) -> Option<Vec<u64>> {
        let data = self.tokens.data;
        let base = u64_at(data, base).filter(|&base| base >= KERNEL_HALF)?;
        let offsets: Option<Vec<i32>> =
            (0..self.names.len()).map(|n| u32_at(data, offsets + 4 * n).map(|o| o as i32)).collect();
        let offsets = offsets?;
        let absolute = offsets.iter().any(|&offset| offset < 0);
        let address = |offset: i32| match (absolute, u64::try_from(offset)) {
            (true, Ok(address)) => address,
            (true, Err(_)) => base.wrapping_add(u64::from(offset.unsigned_abs()) - 1),
            (false, _) => base.wrapping_add(u64::from(offset as u32)),
        };
        let addresses: Vec<u64> = offsets.into_iter().map(address).collect();
        addresses.is_sorted().then_some(addresses)
    }

    fn table(&self, addresses: &[u64]) -> Table {
        let strings: Vec<&str> = (0..=u8::MAX).map(|token| self.tokens.string(token)).collect();
        let expand = |packed: &[u8]| {
            let name: String = packed.iter().map(|&token| strings[usize::from(token)]).collect();
            // The first character tells the type.
            let skip = name.chars().next().map_or(0, char::len_utf8);
            name[skip..].to_owned()
        };
        Table::new(addresses.iter().zip(&self.names).map(|(&a, packed)| (a, expand(packed))).collect())
    }
}
