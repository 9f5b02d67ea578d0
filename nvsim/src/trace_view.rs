//! `nvsim trace`: what a trace holds.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use trace::{Cutter, End, Event, Header, Kind, Verdict};
use view::place;

use crate::cli::{ShowArgs, TraceArgs, TraceCommand};
use crate::cut::open;
use crate::table::{human, print, table};

/// Runs a subcommand.
pub fn trace(args: &TraceArgs) -> Result<()> {
    match &args.command {
        TraceCommand::Show(args) => show(args, &Filter::default()),
        TraceCommand::Grep { show: args, kind, address, vcpu, text } => {
            let filter =
                Filter { kinds: kind.clone(), address: address.clone(), vcpu: *vcpu, text: text.clone() };
            show(args, &filter)
        }
        TraceCommand::Stats { trace, json } => stats(trace, *json),
    }
}

/// Which events are shown.
#[derive(Debug, Default)]
struct Filter {
    kinds: Vec<String>,
    address: Option<Range<u64>>,
    vcpu: Option<u8>,
    text: Option<String>,
}

impl Filter {
    fn takes(&self, event: &Event<'_>) -> bool {
        let within = |range: &Range<u64>| {
            extent(&event.kind).is_some_and(|(address, len)| {
                address < range.end && address.saturating_add(len.max(1)) > range.start
            })
        };
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == event.kind.name()))
            && self.vcpu.is_none_or(|vcpu| vcpu == event.vcpu)
            && self.address.as_ref().is_none_or(within)
    }
}

/// `0x1000..0x2000`, or the line at one address.
pub fn addresses(text: &str) -> Result<Range<u64>, String> {
    let bad = || format!("{text:?} is no range of addresses; write 0x100000000..0x100001000, or one address");
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let range = match text.split_once("..") {
        Some((from, to)) => number(from).zip(number(to)).map(|(from, to)| from..to),
        None => number(text).map(|at| at..at.saturating_add(1)),
    };
    range.filter(|range| range.start < range.end).ok_or_else(bad)
}

/// The addresses that an event is about.
fn extent(kind: &Kind<'_>) -> Option<(u64, u64)> {
    match *kind {
        Kind::Store { address, data, .. } => Some((address, data.len() as u64)),
        Kind::Flush { address, .. } => Some((address, 64)),
        Kind::Load { address, len } => Some((address, len.into())),
        _ => None,
    }
}

/// An event as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    event: u64,
    instruction: u64,
    /// Guest time in nanoseconds.
    time: u64,
    vcpu: u8,
    rip: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    len: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimm: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Row {
    fn new(number: u64, event: &Event<'_>) -> Self {
        let extent = extent(&event.kind);
        let (mut data, mut dimm, mut function, mut mark) = (None, None, None, None);
        match event.kind {
            Kind::Store { data: bytes, .. } => data = Some(hex(bytes)),
            Kind::Meta { dimm: n, data: bytes, .. } => (dimm, data) = (Some(n), Some(hex(bytes))),
            Kind::Hint { dimm: n } => dimm = Some(n),
            Kind::Call { function: n, .. } => function = Some(n),
            Kind::Mark(name) => mark = Some(name.to_owned()),
            _ => {}
        }
        Self {
            event: number,
            instruction: event.instruction,
            time: event.time,
            vcpu: event.vcpu,
            rip: String::new(),
            kind: event.kind.name(),
            address: extent.map(|(address, _)| format!("{address:#x}")),
            len: extent.map(|(_, len)| len),
            data,
            dimm,
            function,
            mark,
            chain: Vec::new(),
        }
    }

    /// For people: a line, and one for each caller unless they are known.
    fn text(&self, known: bool) -> String {
        const SHOWN: usize = 32;
        let mut what = String::new();
        if let (Some(address), Some(len)) = (&self.address, self.len) {
            what = format!("{address} {len:>3}");
        }
        if let Some(data) = &self.data {
            let (shown, dots) =
                data.split_at_checked(SHOWN).map_or((&data[..], ""), |(head, _)| (head, ".."));
            what = format!("{what} {shown}{dots}");
        }
        if let Some(dimm) = self.dimm {
            what = format!("dimm {dimm} {what}");
        }
        if let Some(function) = self.function {
            what = format!("function {function}");
        }
        if let Some(mark) = &self.mark {
            mark.clone_into(&mut what);
        }
        let seconds = self.time as f64 / 1e9;
        let Self { event, instruction, vcpu, rip, kind, .. } = self;
        let what = what.trim();
        let mut text =
            format!("{event:>8} {seconds:>14.9} {instruction:>12} cpu{vcpu} {kind:<10} {what:<56} {rip}");
        for caller in self.chain.iter().filter(|_| !known) {
            text.push_str(&format!("\n{:>112} {caller}", "<-"));
        }
        text
    }
}

fn style(kind: &str) -> Style {
    let color = match kind {
        "store" | "locked" | "load" => return Style::new(),
        "ntstore" | "direct" | "device" => AnsiColor::Yellow,
        "clwb" | "clflush" | "clflushopt" => AnsiColor::Cyan,
        "hint" => AnsiColor::Magenta,
        "mark" | "reset" => return AnsiColor::Green.on_default().bold(),
        "label" | "state" | "dsm" => AnsiColor::Red,
        _ => AnsiColor::Blue,
    };
    color.on_default()
}

/// Where the lines go: through a pager to a person, and plainly to everybody else.
struct Output {
    to: Box<dyn Write>,
    color: bool,
    pager: Option<Child>,
}

impl Output {
    fn new(json: bool) -> Self {
        let person = !json && io::stdout().is_terminal();
        let color = person && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let plain = || Box::new(BufWriter::new(io::stdout()));
        if !person {
            return Self { to: plain(), color, pager: None };
        }
        let pager = std::env::var("PAGER").ok().filter(|pager| !pager.trim().is_empty());
        let pager = pager.unwrap_or_else(|| "less".to_owned());
        // As git does: colours pass, and one screen needs no pager.
        let spawned =
            Command::new("sh").args(["-c", &pager]).env("LESS", "FRX").stdin(Stdio::piped()).spawn();
        match spawned {
            Ok(mut child) => match child.stdin.take() {
                Some(stdin) => Self { to: Box::new(BufWriter::new(stdin)), color, pager: Some(child) },
                None => Self { to: plain(), color, pager: None },
            },
            Err(_) => Self { to: plain(), color, pager: None },
        }
    }

    fn line(&mut self, kind: &str, line: &str) -> io::Result<()> {
        let style = if self.color { style(kind) } else { Style::new() };
        writeln!(self.to, "{style}{line}{style:#}")
    }

    fn finish(self) -> io::Result<()> {
        let Self { mut to, pager, .. } = self;
        let flushed = to.flush();
        drop(to);
        if let Some(mut pager) = pager {
            pager.wait()?;
        }
        flushed
    }
}

/// Whoever read has had enough.
fn unless_closed(result: io::Result<()>) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(e).context("Cannot write the events"),
    }
}

fn show(args: &ShowArgs, filter: &Filter) -> Result<()> {
    let mut trace = open(&args.trace)?;
    let mut output = Output::new(args.json);
    let shown = show_to(args, filter, &mut trace, &mut output);
    unless_closed(output.finish())?;
    shown.with_context(|| args.trace.display().to_string())
}

fn show_to<R: io::Read>(
    args: &ShowArgs,
    filter: &Filter,
    trace: &mut trace::Reader<R>,
    output: &mut Output,
) -> Result<()> {
    let mut from = args.from.as_ref().map(Cutter::new);
    let mut to = args.to.as_ref().map(Cutter::new);
    let mut number = 0;
    let mut callers = Vec::new();
    loop {
        let Some(event) = trace.next_event()? else { return Ok(()) };
        number += 1;
        let ends = to.as_mut().map_or(Verdict::GoOn, |cutter| cutter.see(&event));
        if ends == Verdict::Before {
            return Ok(());
        }
        let begins = from.as_mut().map(|cutter| cutter.see(&event));
        if matches!(begins, Some(Verdict::Before | Verdict::After)) {
            from = None;
        }
        let shown = from.is_none() && begins != Some(Verdict::After) && filter.takes(&event);
        if shown {
            let (chain, rip) = (event.chain, event.rip);
            let mut row = Row::new(number, &event);
            row.rip = place(trace, rip);
            row.chain = view::callers(trace, chain);
            let matches = filter.text.as_ref().is_none_or(|part| row.text(false).contains(part));
            if matches {
                // Callers stand where they change.
                let text = row.text(row.chain == callers);
                callers.clone_from(&row.chain);
                let text = if args.json { serde_json::to_string(&row)? } else { text };
                if !unless_closed(output.line(row.kind, &text))? {
                    return Ok(());
                }
            }
        }
        if ends == Verdict::After {
            return Ok(());
        }
    }
}

/// What `stats` prints.
#[derive(Debug, Serialize)]
struct Stats<'a> {
    nvsim: &'a str,
    engine: &'a str,
    image: &'a str,
    kernel: &'a str,
    vcpus: u8,
    seed: u64,
    dimms: Vec<Dimm<'a>>,
    /// Bytes of the file.
    bytes: u64,
    events: u64,
    kinds: BTreeMap<&'static str, u64>,
    /// Bytes stored.
    stored: u64,
    /// Distinct lines stored to.
    lines: u64,
    marks: Vec<String>,
    /// How the recording ended; none if the trace was cut short.
    end: Option<&'a End>,
}

#[derive(Debug, Serialize)]
struct Dimm<'a> {
    name: &'a str,
    id: String,
    size: u64,
    domain: String,
    /// BLAKE3 of its file at the start, by block.
    content: String,
}

/// The most marks that are listed.
const MARKS: usize = 1000;

fn stats(path: &Path, json: bool) -> Result<()> {
    let mut trace = open(path)?;
    let mut kinds = BTreeMap::new();
    let (mut stored, mut lines, mut marks) = (0, std::collections::HashSet::new(), Vec::new());
    let read = loop {
        let event = match trace.next_event() {
            Ok(Some(event)) => event,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        *kinds.entry(event.kind.name()).or_insert(0) += 1;
        match event.kind {
            Kind::Store { address, data, .. } => {
                stored += data.len() as u64;
                let last = address.saturating_add(data.len().max(1) as u64 - 1);
                lines.extend(address / 64..=last / 64);
            }
            Kind::Mark(name) if marks.len() < MARKS => marks.push(name.to_owned()),
            _ => {}
        }
    };
    let Header { nvsim, engine, image, kernel, vcpus, seed, .. } = trace.header();
    let hashes = trace.start().iter().map(|hash| hex(hash)).chain(std::iter::repeat(String::new()));
    let dimms = trace.header().dimms.iter().zip(hashes).map(|(dimm, content)| Dimm {
        name: &dimm.name,
        id: dimm.identity.id(),
        size: dimm.size,
        domain: dimm.persistence.kept.to_string(),
        content,
    });
    let stats = Stats {
        nvsim,
        engine,
        image,
        kernel,
        vcpus: *vcpus,
        seed: *seed,
        dimms: dimms.collect(),
        bytes: std::fs::metadata(path).map_or(0, |meta| meta.len()),
        events: trace.events(),
        kinds,
        stored,
        lines: lines.len() as u64,
        marks,
        end: trace.end(),
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&stats)?);
    } else {
        print_stats(&stats);
    }
    read.with_context(|| path.display().to_string())
}

fn print_stats(stats: &Stats<'_>) {
    let mut head = table(&["TRACE", ""]);
    let Stats { nvsim, engine, image, kernel, vcpus, seed, .. } = stats;
    head.add_row(["made by", &format!("nvsim {nvsim}, engine {engine}, {vcpus} vCPUs, seed {seed}")]);
    head.add_row(["image", &format!("{image} (Linux {kernel})")]);
    for dimm in &stats.dimms {
        head.add_row(["NV-DIMM", &format!("{} {} {} {}", dimm.name, dimm.id, human(dimm.size), dimm.domain)]);
    }
    head.add_row(["file", &human(stats.bytes)]);
    head.add_row(["events", &stats.events.to_string()]);
    head.add_row(["stored", &format!("{} bytes in {} lines", stats.stored, stats.lines)]);
    match stats.end {
        Some(end) => head.add_row(["ended", &format!("{}, at instruction {}", end.outcome, end.instruction)]),
        None => head.add_row(["ended", "cut short"]),
    };
    print(&head);
    println!();
    let mut rows = table(&["KIND", "EVENTS"]);
    for (kind, count) in &stats.kinds {
        rows.add_row([*kind, &count.to_string()]);
    }
    print(&rows);
    if !stats.marks.is_empty() {
        println!("\nMARKS\n{}", stats.marks.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_or_a_range() {
        assert_eq!(addresses("0x40..0x80"), Ok(0x40..0x80));
        assert_eq!(addresses("0x40"), Ok(0x40..0x41));
        for bad in ["", "40", "0x80..0x40", "0x40..", "0xg"] {
            assert!(addresses(bad).is_err(), "{bad}");
        }
    }
}
