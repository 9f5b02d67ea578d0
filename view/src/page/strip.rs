//! Drawings over the whole run: the timeline, and the epochs as bars.

use maud::{Markup, html};

use crate::epoch::Epochs;
use crate::names::{bytes, grouped, seconds};
use crate::timeline::{Column, Timeline};

/// Width of the drawing, and of its margins.
const WIDTH: f64 = 1160.0;
const LEFT: f64 = 86.0;
const RIGHT: f64 = 8.0;
/// Marks that have their names written; the others are lines only.
const NAMED: usize = 24;
const LINE: u64 = 64;

/// A stripe of the drawing.
struct Stripe {
    top: f64,
    height: f64,
    /// The value that is as high as the stripe.
    most: f64,
}

impl Stripe {
    /// How high a value stands: by its square root.
    fn scale(&self, value: u64) -> f64 {
        if self.most <= 0.0 { 0.0 } else { (value as f64 / self.most).sqrt() * self.height }
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

/// The timeline.
pub fn timeline(timeline: &Timeline) -> Markup {
    let columns = &timeline.columns;
    let width = (WIDTH - LEFT - RIGHT) / columns.len().max(1) as f64;
    let x = |n: usize| LEFT + n as f64 * width;
    let most = |value: fn(&Column) -> u64| columns.iter().map(value).max().unwrap_or(0) as f64;
    // Room for the names of marks, which stand askew.
    let longest = timeline.milestones.iter().map(|mark| mark.name.chars().count().min(20)).max();
    let names = longest.map_or(0.0, |letters| 8.0 + 4.6 * letters as f64);
    let doubt = Stripe { top: 14.0 + names, height: 130.0, most: most(|c| c.most as u64) };
    let stored =
        Stripe { top: doubt.bottom() + 26.0, height: 90.0, most: most(|c| c.cached + c.posted + c.device) };
    let mut top = stored.bottom() + 14.0;
    let mut row = |value: fn(&Column) -> u64| {
        let stripe = Stripe { top, height: 14.0, most: most(value) };
        top += 20.0;
        stripe
    };
    let rows = [
        ("flushes", "flush", row(|c| c.flushes), (|c| c.flushes) as fn(&Column) -> u64),
        ("fences", "fence", row(|c| c.fences), |c| c.fences),
        ("hints", "hint", row(|c| c.hints), |c| c.hints),
    ];
    let rows: Vec<_> =
        rows.into_iter().filter(|(name, _, stripe, _)| *name != "hints" || stripe.most > 0.0).collect();
    let bottom = rows.last().map_or(top, |(_, _, stripe, _)| stripe.bottom());
    let height = bottom + 44.0;
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (n(height)) } role="img" aria-label="What happened in the course of the run" {
            (scale_of(&doubt, "in doubt", &bytes(doubt.most as u64 * LINE)))
            (scale_of(&stored, "stored", &bytes(stored.most as u64)))
            path d=(area(columns, &doubt, width)) fill="var(--doubt)" fill-opacity=".28" stroke="var(--doubt)" stroke-width="1.2" {}
            @for (i, column) in columns.iter().enumerate() {
                @let parts = [("cached", column.cached), ("posted", column.posted), ("device", column.device)];
                @let total = parts.iter().map(|part| part.1).sum::<u64>();
                @let high = stored.scale(total);
                @for (k, &(colour, part)) in parts.iter().enumerate() {
                    @if part > 0 {
                        @let below = parts[..k].iter().map(|part| part.1).sum::<u64>() as f64 / total as f64 * high;
                        @let own = (part as f64 / total as f64 * high).max(0.6);
                        rect x=(n(x(i))) y=(n(stored.bottom() - below - own)) width=(n(width.max(0.8))) height=(n(own))
                            fill={ "var(--" (colour) ")" } {}
                    }
                }
                @for (_, colour, stripe, value) in &rows {
                    @if value(column) > 0 {
                        rect x=(n(x(i))) y=(n(stripe.top)) width=(n(width.max(0.8))) height=(n(stripe.height))
                            fill={ "var(--" (colour) ")" }
                            fill-opacity=(n(0.25 + 0.75 * (value(column) as f64 / stripe.most).sqrt())) {}
                    }
                }
            }
            @for (name, _, stripe, _) in &rows {
                text x=(n(LEFT - 8.0)) y=(n(stripe.bottom() - 3.0)) text-anchor="end" { (name) }
            }
            (milestones(timeline, width, &doubt, bottom))
            (axis(timeline, width, bottom))
            @for (i, column) in columns.iter().enumerate() {
                rect x=(n(x(i))) y=(n(doubt.top)) width=(n(width)) height=(n(bottom - doubt.top)) fill="transparent" {
                    title { (told(column)) }
                }
            }
        }
    }
}

/// A column's numbers, for whoever points at it.
fn told(column: &Column) -> String {
    let mut text = format!(
        "events {}–{}, at {}\nin doubt: up to {} lines, {} at the end\n{} stores: {} cached, {} non-temporal",
        grouped(column.first + 1),
        grouped(column.first + column.events),
        seconds(column.time),
        grouped(column.most as u64),
        grouped(column.last as u64),
        grouped(column.stores),
        bytes(column.cached),
        bytes(column.posted),
    );
    if column.device > 0 {
        text += &format!(", {} by devices", bytes(column.device));
    }
    text += &format!("\n{} flushes, {} fences", grouped(column.flushes), grouped(column.fences));
    if column.hints > 0 {
        text += &format!(", {} hints", grouped(column.hints));
    }
    text
}

fn area(columns: &[Column], stripe: &Stripe, width: f64) -> String {
    let mut path = format!("M{} {}", n(LEFT), n(stripe.bottom()));
    for (i, column) in columns.iter().enumerate() {
        let (x, y) = (LEFT + i as f64 * width, stripe.bottom() - stripe.scale(column.most as u64));
        path += &format!("L{} {}H{}", n(x), n(y), n(x + width));
    }
    path + &format!("V{}Z", n(stripe.bottom()))
}

fn scale_of(stripe: &Stripe, name: &str, most: &str) -> Markup {
    html! {
        @for (part, word) in [(1.0, most.to_owned()), (0.5, String::new()), (0.0, String::new())] {
            @let y = stripe.bottom() - part * stripe.height;
            line x1=(n(LEFT)) x2=(n(WIDTH - RIGHT)) y1=(n(y)) y2=(n(y)) stroke="var(--rule)" {}
            text x=(n(LEFT - 8.0)) y=(n(y + 4.0)) text-anchor="end" { (word) }
        }
        text.strong x=(n(LEFT - 8.0)) y=(n(stripe.bottom() - stripe.height / 2.0 + 4.0)) text-anchor="end" { (name) }
    }
}

fn milestones(timeline: &Timeline, width: f64, doubt: &Stripe, bottom: f64) -> Markup {
    let per_event = width * timeline.columns.len() as f64 / timeline.totals.events.max(1) as f64;
    // A name that would stand on the one before is left out.
    let (mut last, mut named) = (f64::MIN, 0);
    let marks = timeline.milestones.iter().map(|mark| {
        let x = LEFT + mark.event as f64 * per_event;
        let has_room = x - last >= 13.0 && named < NAMED;
        if has_room {
            last = x;
            named += 1;
        }
        (mark, x, has_room)
    });
    html! {
        @for (mark, x, has_room) in marks {
            line x1=(n(x)) x2=(n(x)) y1=(n(doubt.top - 6.0)) y2=(n(bottom)) stroke="var(--mark)" stroke-opacity=".45"
                stroke-dasharray="3 3" {
                title { "mark " (mark.name) ", event " (grouped(mark.event)) ", " (seconds(mark.time)) }
            }
            @if has_room {
                // Near the right edge a name leans to the left.
                @let (anchor, turn) = if x > WIDTH - 90.0 { ("end", 40) } else { ("start", -40) };
                text.strong x=(n(x)) y=(n(doubt.top - 10.0)) text-anchor=(anchor)
                    transform={ "rotate(" (turn) " " (n(x)) " " (n(doubt.top - 10.0)) ")" } {
                    (mark.name.chars().take(20).collect::<String>())
                }
            }
        }
    }
}

fn axis(timeline: &Timeline, width: f64, bottom: f64) -> Markup {
    let columns = &timeline.columns;
    let ticks = columns.len().min(6);
    html! {
        @for tick in 0..ticks {
            @let i = tick * columns.len() / ticks.max(1);
            @let x = LEFT + i as f64 * width;
            line x1=(n(x)) x2=(n(x)) y1=(n(bottom + 4.0)) y2=(n(bottom + 9.0)) stroke="var(--faint)" {}
            text x=(n(x)) y=(n(bottom + 22.0)) { "event " (grouped(columns[i].first + 1)) }
            text x=(n(x)) y=(n(bottom + 36.0)) { (seconds(columns[i].time)) }
        }
    }
}

/// The epochs as bars.
pub fn bars(epochs: &Epochs) -> Markup {
    let most = epochs.bars.iter().map(|bar| bar.bytes).max().unwrap_or(0);
    let stripe = Stripe { top: 6.0, height: 80.0, most: most as f64 };
    let room = (WIDTH - LEFT - RIGHT) / epochs.bars.len().max(1) as f64;
    let wide = if room > 4.0 { (room - 1.0).min(26.0) } else { room };
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (n(stripe.bottom() + 22.0)) } role="img" aria-label="The epochs" {
            (scale_of(&stripe, "stored", &bytes(most)))
            @for (i, bar) in epochs.bars.iter().enumerate() {
                @let x = LEFT + i as f64 * room;
                @let high = stripe.scale(bar.bytes).max(2.0);
                rect x=(n(x)) y=(n(stripe.bottom() - high)) width=(n(wide)) height=(n(high))
                    fill=(if bar.left > 0 { "var(--doubt)" } else { "var(--sure)" }) {
                    title {
                        @if bar.epochs == 1 { "epoch " (grouped(bar.first)) }
                        @else { "epochs " (grouped(bar.first)) "–" (grouped(bar.first + bar.epochs - 1)) }
                        ": " (bytes(bar.bytes)) " stored, " (grouped(bar.left as u64)) " lines left in doubt"
                    }
                }
            }
            text x=(n(LEFT)) y=(n(stripe.bottom() + 17.0)) { "epoch 1" }
            @if epochs.count > 1 {
                text x=(n(WIDTH - RIGHT)) y=(n(stripe.bottom() + 17.0)) text-anchor="end" { (grouped(epochs.count)) }
            }
        }
    }
}

/// A coordinate: a tenth is finer than a screen.
pub fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
