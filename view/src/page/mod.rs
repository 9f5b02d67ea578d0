//! A trace as one self-contained page: no script, nothing from elsewhere. maud escapes whatever the guest or its user named.

mod picture;
mod strip;

use std::io::Read;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use nvdimm_model::Domain;
use trace::{Header, Reader};

use crate::epoch::{Epoch, Epochs};
use crate::explain::{Explanation, of_replayed};
use crate::names::{bytes, function, grouped, place, seconds};
use crate::timeline::{Timeline, Totals};
use crate::{Result, Source};

/// Rows of the tables.
const ROWS: usize = 25;
/// Callers that are shown of a chain.
const CALLERS: usize = 8;

/// Draws a trace.
///
/// # Errors
/// The trace cannot be read to its end.
pub fn report(source: &Source) -> Result<String> {
    // How many events there are decides how they are drawn.
    let mut reader = source.open()?;
    while reader.next_event().map_err(|e| source.wrong(e))?.is_some() {}
    let mut timeline = Timeline::new(reader.events());
    drop(reader);
    let replayed = source.replay(None, |number, event, medium| timeline.see(number, event, medium))?;
    timeline.epochs.finish(replayed.replay.contents().medium());
    let explanation = of_replayed(source, &replayed)?;
    let title = source.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(page(&title, replayed.replay.trace(), &timeline, &explanation).into_string())
}

fn page<R: Read>(title: &str, reader: &Reader<R>, timeline: &Timeline, explanation: &Explanation) -> Markup {
    let header = reader.header();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · nvsim" }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                main {
                    h1 { (title) }
                    p.lead { (lead(header, timeline)) }
                    (verdict(explanation))
                    (cards(&timeline.totals, timeline.epochs.count))
                    h2 { "The run" }
                    p.note {
                        "From left to right the events in their order, each column as wide as any other. "
                        "Above, how much a power cut at that moment could lose; below, what was done. Heights grow with "
                        "the square root, so that little things show. Point at a column for its numbers."
                    }
                    div.panel { (strip::timeline(timeline)) }
                    (legend())
                    @if timeline.totals.marks_left_out > 0 {
                        p.note { (grouped(timeline.totals.marks_left_out)) " further marks are not drawn." }
                    }
                    (doubts(explanation))
                    (epochs(reader, &timeline.epochs))
                    (writers(reader, timeline))
                    h2 { "The machine" }
                    (machine(reader))
                    footer {
                        "Drawn by nvsim " (env!("CARGO_PKG_VERSION")) ". "
                        "What survives a power cut is worked out as docs/persistence-model.md says."
                    }
                }
            }
        }
    }
}

fn lead(header: &Header, timeline: &Timeline) -> String {
    let start = timeline.columns.first().map_or(0, |column| column.time);
    let end = timeline.columns.last().map_or(0, |column| column.time);
    let dimms = match header.dimms.len() {
        1 => "one NV-DIMM".to_owned(),
        n => format!("{n} NV-DIMMs"),
    };
    let image = if header.image.is_empty() { "a guest" } else { &header.image };
    format!("What {image} did to {dimms}, from {} to {} of guest time.", seconds(start), seconds(end))
}

fn verdict(explanation: &Explanation) -> Markup {
    let lines = explanation.lines.len() as u64;
    if lines == 0 {
        return html! { div.verdict { b { "Nothing is in doubt at the end." } " A power cut there leaves one image only." } };
    }
    html! {
        div.verdict.doubt {
            b { (grouped(lines)) @if lines == 1 { " line is" } @else { " lines are" } " in doubt at the end." }
            " A power cut there leaves one of " b { (explanation.states_in_short()) } " images."
        }
    }
}

fn cards(totals: &Totals, epochs: u64) -> Markup {
    let card = |number: String, what: &str| html! { div.card { b { (number) } span { (what) } } };
    html! {
        div.cards {
            (card(grouped(totals.events), "events"))
            (card(grouped(totals.stores), "stores"))
            (card(bytes(totals.bytes), "stored"))
            (card(bytes(totals.posted), "of it non-temporal"))
            (card(grouped(totals.flushes), "flushes of a line"))
            (card(grouped(totals.fences), "fences"))
            @if totals.hints > 0 { (card(grouped(totals.hints), "flush hints")) }
            (card(grouped(epochs), "epochs"))
            (card(bytes(totals.most as u64 * 64), "in doubt at most"))
        }
    }
}

fn legend() -> Markup {
    let item = |colour: &str, what: &str| {
        html! { span { i style={ "background:var(--" (colour) ")" } {} (what) } }
    };
    html! {
        div.legend {
            (item("doubt", "in doubt")) (item("sure", "sure to survive")) (item("cached", "stored through the caches"))
            (item("posted", "stored past them (non-temporal)")) (item("device", "written by a device"))
            span { i.ring {} "flush" } (item("fence", "fence")) (item("hint", "flush hint"))
        }
    }
}

fn doubts(explanation: &Explanation) -> Markup {
    if explanation.causes.is_empty() {
        return html! {};
    }
    html! {
        h2 { "In doubt at the end" }
        p.note { "What lacks to the stores in doubt, and the code that made them." }
        div.panel {
            table {
                tr { th { "missing" } th.n { "lines" } th.n { "stores" } th { "stored by" } }
                @for cause in explanation.causes.iter().take(ROWS) {
                    tr {
                        td { span.missing { (cause.missing) } }
                        td.n { (grouped(cause.lines)) }
                        td.n { (grouped(cause.stores)) }
                        td.code { (cause.at) (chain(&cause.callers)) }
                    }
                }
            }
        }
        @if explanation.causes.len() > ROWS {
            p.note { (explanation.causes.len() - ROWS) " more: " code { "nvsim explain" } " lists them all." }
        }
    }
}

fn chain(callers: &[String]) -> Markup {
    html! {
        @if !callers.is_empty() {
            br;
            small {
                "from "
                @for (n, caller) in callers.iter().take(CALLERS).enumerate() {
                    @if n > 0 { " ‹ " }
                    (function(caller))
                }
                @if callers.len() > CALLERS { " ‹ …" }
            }
        }
    }
}

fn epochs<R: Read>(reader: &Reader<R>, epochs: &Epochs) -> Markup {
    if epochs.count == 0 {
        return html! {};
    }
    let kept = epochs.kept();
    html! {
        h2 { "Epochs" }
        p.note {
            "From one fence to the next. Each bar is an epoch" @if epochs.count > epochs.bars.len() as u64 { ", or some" }
            ", as high as it stored bytes; red where lines that it touched were still in doubt when it ended."
        }
        div.panel { (strip::bars(epochs)) }
        p.note style="margin-top:1rem" {
            @if (kept.len() as u64) < epochs.count {
                "The " (kept.len()) " that left most in doubt, then those that did most, in their order. "
            }
            "In each picture the events go from left to right and the lines touched from top to bottom; at the right edge, "
            "what became of them."
        }
        div.epochs { @for epoch in kept { (card_of(reader, epoch)) } }
    }
}

fn card_of<R: Read>(reader: &Reader<R>, epoch: &Epoch) -> Markup {
    let Epoch { number, first, events, .. } = *epoch;
    html! {
        div.epoch.doubt[epoch.left > 0] {
            h3 {
                "Epoch " (grouped(number))
                em {
                    @if epoch.left > 0 { (grouped(epoch.left as u64)) " of " (grouped(epoch.touched as u64)) " lines in doubt" }
                    @else { "all sure" }
                }
            }
            p {
                "events " (grouped(first)) "–" (grouped(first + events - 1)) " · " (seconds(epoch.time)) " · "
                (grouped(epoch.stores)) " stores, " (bytes(epoch.bytes)) ", " (grouped(epoch.flushes)) " flushes · "
                @match epoch.end {
                    Some(end) => { (end) " by vCPU " (epoch.vcpu) },
                    None => { "not ended" },
                }
                @if epoch.writer != 0 { br; code { (place(reader, epoch.writer)) } }
                @for mark in &epoch.marks { br; "mark " b { (mark) } }
            }
            (picture::epoch(epoch))
        }
    }
}

fn writers<R: Read>(reader: &Reader<R>, timeline: &Timeline) -> Markup {
    let mut writers: Vec<_> = timeline.writers.iter().collect();
    writers.sort_by_key(|&(rip, writes)| (std::cmp::Reverse(writes.bytes), rip));
    if writers.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Who stores" }
        div.panel {
            table {
                tr { th { "code" } th.n { "stores" } th.n { "bytes" } th.n { "non-temporal" } }
                @for &(&rip, writes) in writers.iter().take(ROWS) {
                    tr {
                        td.code { (place(reader, rip)) }
                        td.n { (grouped(writes.stores)) }
                        td.n { (bytes(writes.bytes)) }
                        td.n { (writes.posted * 100 / writes.bytes.max(1)) " %" }
                    }
                }
            }
        }
    }
}

fn machine<R: Read>(reader: &Reader<R>) -> Markup {
    let header = reader.header();
    let domain = |domain: Domain| domain.to_string();
    html! {
        div.panel {
            dl {
                dt { "recorded by" } dd { "nvsim " (header.nvsim) ", engine " (header.engine) }
                @if !header.image.is_empty() { dt { "image" } dd { (header.image) " " small { (header.image_hash) } } }
                @if !header.kernel.is_empty() { dt { "kernel" } dd { (header.kernel) } }
                dt { "command line" } dd.mono { (header.command_line) }
                dt { "vCPUs, seed" } dd { (header.vcpus) ", " (header.seed) }
                @for dimm in &header.dimms {
                    dt { "NV-DIMM" }
                    dd {
                        (dimm.name) ", " (bytes(dimm.size)) ", domain " (domain(dimm.persistence.kept))
                        @if dimm.persistence.shown != dimm.persistence.kept {
                            " (the guest is told " (domain(dimm.persistence.shown)) ")"
                        }
                    }
                }
                @if let Some(end) = reader.end() { dt { "ended" } dd { (end.outcome) } }
            }
        }
    }
}
