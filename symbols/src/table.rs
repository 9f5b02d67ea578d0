//! Names by address.

/// Symbols, sorted by address.
#[derive(Debug, Clone, Default)]
pub struct Table {
    addresses: Vec<u64>,
    /// Where each name begins; one more than there are symbols.
    starts: Vec<u32>,
    names: String,
}

impl Table {
    /// A table of names that come in any order. Of those with one address, the one that came first is found.
    pub fn new<N: AsRef<str>>(mut symbols: Vec<(u64, N)>) -> Self {
        symbols.sort_by_key(|(address, _)| *address);
        let mut table = Self { starts: vec![0], ..Self::default() };
        for (address, name) in symbols {
            let end = table.names.len() + name.as_ref().len();
            let Ok(end) = u32::try_from(end) else { break };
            table.addresses.push(address);
            table.names.push_str(name.as_ref());
            table.starts.push(end);
        }
        table
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The symbol at or before an address, and how far before.
    pub fn lookup(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.addresses.partition_point(|&a| a <= address);
        let own = *self.addresses.get(after.checked_sub(1)?)?;
        let first = self.addresses.partition_point(|&a| a < own);
        Some((self.name(first)?, address - own))
    }

    /// The address of a name; the lowest, if several have it.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.iter().find(|(_, own)| *own == name).map(|(address, _)| address)
    }

    /// All symbols, by address.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.addresses.iter().enumerate().filter_map(|(n, &address)| Some((address, self.name(n)?)))
    }

    fn name(&self, n: usize) -> Option<&str> {
        let (start, end) = (*self.starts.get(n)?, *self.starts.get(n + 1)?);
        self.names.get(start as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_names_is_found_and_offsets_count_from_it() {
        let table = Table::new(vec![(20, "b"), (10, "a"), (20, "alias")]);
        assert_eq!(table.lookup(9), None);
        assert_eq!(table.lookup(10), Some(("a", 0)));
        assert_eq!(table.lookup(19), Some(("a", 9)));
        assert_eq!(table.lookup(25), Some(("b", 5)));
        assert_eq!((table.address("alias"), table.address("c")), (Some(20), None));
    }
}
