//! Tables and sizes as people read them.

use comfy_table::{ContentArrangement, Table, presets};

/// A borderless table with these column heads.
pub fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(
        heads.iter().map(|head| comfy_table::Cell::new(head).add_attribute(comfy_table::Attribute::Bold)),
    );
    table
}

/// Prints a table without the blanks that pad its last column.
pub fn print(table: &Table) {
    for line in table.lines() {
        println!("{}", line.trim_end());
    }
}

/// A size in the largest binary unit that leaves at least 1.
pub fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    let value = bytes as f64 / (1u64 << (10 * unit)) as f64;
    let digits = usize::from(unit > 0 && value.fract() != 0.0);
    format!("{value:.digits$} {}", units[unit as usize])
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_read_well() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(1023), "1023 B");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(1 << 30), "1 GiB");
    }
}
