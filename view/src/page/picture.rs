//! The picture of one epoch: what was done to which line, in its order, and what became of the line.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::strip::n;
use crate::epoch::{Act, Epoch};
use crate::names::grouped;

const WIDTH: f64 = 330.0;
const TOP: f64 = 4.0;
/// Rows and columns of the drawing; lines and events beyond share them.
const ROWS: usize = 18;
const COLUMNS: u64 = 110;
/// Where the events end, and where what became of the lines is drawn.
const EVENTS: f64 = 300.0;
const FATE: f64 = 308.0;

/// A run of neighbouring lines, drawn as one row.
struct Row {
    first: u64,
    last: u64,
    lines: u64,
    left: u64,
}

/// Puts neighbours together until there are few enough rows.
fn rows(lines: &[(u64, bool)]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let share = lines.len().div_ceil(ROWS).max(1) as u64;
    for &(line, left) in lines {
        match rows.last_mut() {
            Some(row) if row.lines < share => {
                row.last = line;
                row.lines += 1;
                row.left += u64::from(left);
            }
            _ => rows.push(Row { first: line, last: line, lines: 1, left: left.into() }),
        }
    }
    rows
}

/// Draws an epoch.
pub fn epoch(epoch: &Epoch) -> Markup {
    let rows = rows(&epoch.lines);
    let high = (120.0 / rows.len().max(1) as f64).clamp(6.5, 14.0);
    let height = TOP * 2.0 + high * rows.len() as f64;
    let columns = epoch.events.clamp(1, COLUMNS);
    let wide = EVENTS / columns as f64;
    // What was done most in each cell; a flush is drawn over it.
    let mut cells: BTreeMap<(usize, u64), (BTreeMap<Act, u64>, bool)> = BTreeMap::new();
    for stroke in &epoch.strokes {
        let row = rows.partition_point(|row| row.last < stroke.line);
        let column = u64::from(stroke.at) * columns / epoch.events.max(1);
        let cell = cells.entry((row, column)).or_default();
        match stroke.act {
            Act::Flush => cell.1 = true,
            act => *cell.0.entry(act).or_default() += 1,
        }
    }
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (n(height)) } role="img" aria-label={ "Epoch " (epoch.number) } {
            @for (i, row) in rows.iter().enumerate() {
                @let y = TOP + i as f64 * high;
                rect x="0" y=(n(y)) width=(EVENTS) height=(n(high - 1.0)) fill="var(--rule)" fill-opacity=".45" {
                    title {
                        (format!("{:#x}", row.first * 64))
                        @if row.lines > 1 { (format!("–{:#x}", row.last * 64 + 63)) ", " (grouped(row.lines)) " lines" }
                    }
                }
                @let left = row.left as f64 / row.lines as f64 * 22.0;
                rect x=(FATE) y=(n(y)) width="22" height=(n(high - 1.0)) fill="var(--sure)" {}
                @if row.left > 0 {
                    rect x=(FATE) y=(n(y)) width=(n(left.max(1.0))) height=(n(high - 1.0)) fill="var(--doubt)" {
                        title { (grouped(row.left)) " of " (grouped(row.lines)) " in doubt" }
                    }
                }
            }
            @for (&(row, column), (acts, flushed)) in &cells {
                @let (x, y) = (column as f64 * wide, TOP + row as f64 * high);
                @if let Some((act, _)) = acts.iter().max_by_key(|(_, count)| **count) {
                    rect x=(n(x)) y=(n(y)) width=(n(wide.clamp(1.2, 9.0))) height=(n(high - 1.0)) rx="1" fill=(colour(*act)) {}
                }
                @if *flushed {
                    circle cx=(n(x + wide.clamp(1.2, 9.0) / 2.0)) cy=(n(y + (high - 1.0) / 2.0)) r=(n(high / 2.0 - 1.4))
                        fill="none" stroke="var(--flush)" stroke-width="1.4" {}
                }
            }
            @if epoch.end.is_some() {
                rect x=(n(EVENTS + 1.5)) y=(n(TOP)) width="3" height=(n(height - 2.0 * TOP - 1.0)) fill="var(--fence)" {}
            }
        }
    }
}

fn colour(act: Act) -> &'static str {
    match act {
        Act::Cached => "var(--cached)",
        Act::Posted => "var(--posted)",
        Act::Device => "var(--device)",
        Act::Flush => "var(--flush)",
    }
}
