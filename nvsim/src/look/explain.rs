//! `nvsim explain`.

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result};
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, Color, Table};
use view::{Cause, Explanation, Line, Source, Store};

use super::ExplainArgs;
use super::files::FileSystems;
use crate::table::{print, table};

/// Callers and files that are shown of a cause.
const CALLERS: usize = 5;
const FILES: usize = 4;

/// Explains.
pub fn explain(args: &ExplainArgs) -> Result<()> {
    let source = Source::new(&args.trace).by(args.rules.unwrap_or_default());
    let view::Explained { mut explanation, images, image } = view::explain(&source, args.at.as_ref())?;
    if !args.no_files {
        let places: Vec<(usize, u64)> =
            explanation.lines.iter().map(|line| (line.dimm, line.offset)).collect();
        let found = FileSystems::read(&images, &image).locate(&places);
        explanation.locate(|dimm, offset| found.get(&(dimm, offset)).cloned());
    }
    if args.json {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, &explanation).context("Cannot write the explanation")?;
        return writeln!(out).context("Cannot write the explanation");
    }
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    show(args, &explanation, Palette { colour });
    Ok(())
}

/// Colours, for whom they help.
#[derive(Debug, Clone, Copy)]
struct Palette {
    colour: bool,
}

impl Palette {
    fn missing(self, text: &str) -> Cell {
        let colour = match text {
            _ if text.starts_with("flush") => Color::Red,
            _ if text.starts_with("fence") => Color::Magenta,
            _ => Color::Yellow,
        };
        if self.colour { Cell::new(text).fg(colour).add_attribute(Attribute::Bold) } else { Cell::new(text) }
    }

    fn table(self, heads: &[&str]) -> Table {
        let mut table = table(heads);
        if self.colour {
            table.enforce_styling();
        }
        table
    }

    fn bold(self, text: &str) -> String {
        let style = if self.colour { Style::new().bold() } else { Style::new() };
        format!("{style}{text}{style:#}")
    }

    fn good(self, text: &str) -> String {
        let style = if self.colour { AnsiColor::Green.on_default().bold() } else { Style::new() };
        format!("{style}{text}{style:#}")
    }
}

fn show(args: &ExplainArgs, explanation: &Explanation, palette: Palette) {
    let moment = args.at.as_ref().map_or_else(|| "the end".to_owned(), ToString::to_string);
    let reached = &explanation.reached;
    let seconds = reached.time as f64 / 1e9;
    println!(
        "At {moment}: after {} events, at instruction {}, {seconds:.9} s.",
        reached.events, reached.instruction
    );
    let lines = explanation.lines.len();
    if lines == 0 {
        println!("{} A power cut leaves one image only.", palette.good("Nothing is in doubt."));
        return;
    }
    let (are, images) = (if lines == 1 { "line is" } else { "lines are" }, explanation.states_in_short());
    println!(
        "{} A power cut leaves one of {images} images.\n",
        palette.bold(&format!("{lines} {are} in doubt."))
    );

    let mut rows = palette.table(&["MISSING", "LINES", "STORES", "STORED BY", "IN"]);
    for cause in &explanation.causes {
        rows.add_row([
            palette.missing(&cause.missing),
            Cell::new(cause.lines),
            Cell::new(cause.stores),
            Cell::new(chain(cause)),
            Cell::new(files(cause)),
        ]);
    }
    print(&rows);
    println!();
    let mut rows = palette.table(&["LINE", "IN", "EVENT", "STORE", "DATA", "BY", "MISSING"]);
    for line in explanation.lines.iter().take(args.lines) {
        for (n, store) in line.stores.iter().enumerate() {
            rows.add_row(row(explanation, line, n, store, palette));
        }
    }
    print(&rows);
    if let Some(more) = lines.checked_sub(args.lines).filter(|&more| more > 0) {
        println!("\n{more} more lines: --lines all shows them, --json too.");
    }
}

fn row(explanation: &Explanation, line: &Line, n: usize, store: &Store, palette: Palette) -> Vec<Cell> {
    // Of a line's stores, only the first says where it is.
    let once = |text: String| if n == 0 { text } else { String::new() };
    let dimm = explanation.dimms.get(line.dimm).map_or("?", String::as_str);
    let place = line.place.as_ref().map(|place| match place.offset {
        Some(offset) => format!("{}+{offset:#x}", place.name),
        None => place.name.clone(),
    });
    let what = format!("{} {}+{}", store.kind, store.offset, store.len);
    let dots = if store.data.len() < 2 * usize::from(store.len) { ".." } else { "" };
    vec![
        Cell::new(once(format!("{dimm}+{:#x}", line.offset))),
        Cell::new(once(place.unwrap_or_default())),
        Cell::new(store.event),
        Cell::new(what),
        Cell::new(format!("{}{dots}", store.data)),
        Cell::new(&store.at),
        palette.missing(&store.missing),
    ]
}

/// The code that stored, and who called it.
fn chain(cause: &Cause) -> String {
    let mut text = cause.at.clone();
    for caller in cause.callers.iter().take(CALLERS) {
        text = format!("{text}\n  < {caller}");
    }
    if cause.callers.len() > CALLERS {
        text += "\n  < ...";
    }
    text
}

fn files(cause: &Cause) -> String {
    let mut text = cause.files.iter().take(FILES).cloned().collect::<Vec<_>>().join("\n");
    if cause.files.len() > FILES {
        text = format!("{text}\nand {} more", cause.files.len() - FILES);
    }
    text
}
