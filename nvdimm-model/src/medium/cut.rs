//! A power cut at this moment: the image for a choice of survivors, and its name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::log::{NONE, Step, StepId};
use super::name::LineName;
use super::reach::{Base, Content, Limits, overlay};
use super::{ImageName, Marks, Medium, Raise, Sure};
use crate::Error;
use crate::geometry::LINE;

/// What survives of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pick {
    /// The first stores in doubt, and of the one after them the chunks of a mask.
    InOrder {
        /// How many stores.
        kept: u32,
        /// Chunks of the next store, a bit each.
        torn: u8,
    },
    /// Of each chunk, the first stores in doubt there.
    ByChunks([u32; 8]),
}

/// Which of the undecided stores survive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Survivors {
    /// None.
    None,
    /// All.
    All,
    /// As a random number generator with this seed says.
    Random(u64),
    /// As said for lines by their addresses; none of the others.
    Picks(BTreeMap<u64, Pick>),
}

/// An image, or how it differs from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Lines by address.
    pub lines: BTreeMap<u64, Content>,
    /// The name of the image as a whole.
    pub name: ImageName,
}

/// A power cut: what is sure is worked out once, and each choice then costs only the lines in doubt.
#[derive(Debug)]
pub struct Cut<'a> {
    pub(super) medium: &'a Medium,
    sure: Image,
    /// Lines in doubt, in order.
    pub(super) doubt: Vec<Doubt>,
    /// The steps in doubt of all of them, line by line, the oldest first.
    steps: Vec<(StepId, Step)>,
}

/// A line in doubt.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) line: u64,
    marks: Marks,
    /// The newest sure step of each chunk.
    floors: Limits,
    /// Whether chunks choose each for itself; else the floors are one.
    pub(super) by_chunks: bool,
    /// What is sure of it.
    pub(super) sure: Content,
    /// The part of that in the image's name.
    named: LineName,
    steps: Range<usize>,
}

/// What is kept of a line when the decided is forgotten.
struct Kept {
    line: u64,
    floors: Limits,
    /// Oldest first.
    steps: Vec<(StepId, Step)>,
}

impl Medium {
    /// Cuts the power now. `base` is what was durable at the start, or when the medium was last settled.
    pub fn cut(&self, base: &impl Base) -> Cut<'_> {
        let mut sure = Image { lines: BTreeMap::new(), name: self.settled };
        let mut doubt = Vec::new();
        for (&line, &marks) in &self.lines {
            let address = line * LINE;
            let start = base.line(address);
            let floors = self.floors(line, marks);
            let content = self.content(marks.top, &floors, start);
            if marks.floor != marks.top {
                let by_chunks = self.chunked.contains_key(&line);
                let named = LineName::new(address, &content);
                doubt.push(Doubt { line, marks, floors, by_chunks, sure: content, named, steps: 0..0 });
            }
            if content != start {
                sure.name.change(address, &start, &content);
                sure.lines.insert(address, content);
            }
        }
        doubt.sort_unstable_by_key(|doubt| doubt.line);
        let mut steps = Vec::new();
        for doubt in &mut doubt {
            let first = steps.len();
            steps.extend(self.steps_in_doubt(doubt.marks, &doubt.floors));
            doubt.steps = first..steps.len();
        }
        Cut { medium: self, sure, doubt, steps }
    }

    /// Forgets what is decided, so that long runs fit into memory: gives the lines whose sure content differs from `base`;
    /// from now on the base is one that has them.
    ///
    /// # Errors
    /// [`Error::MediumFull`] if what is in doubt fills a medium by itself.
    pub fn settle(&mut self, base: &impl Base) -> Result<Image, Error> {
        let Cut { sure, doubt, .. } = self.cut(base);
        let keep = doubt.into_iter().map(|Doubt { line, marks, floors, .. }| {
            // Above the lowest floor all steps stay, lest an older one show through where a newer one is sure.
            let lowest = floors.iter().copied().min().unwrap_or(marks.floor);
            let mut steps: Vec<_> = self.log.back(marks.top, lowest).map(|(id, step)| (id, *step)).collect();
            steps.reverse();
            Kept { line, floors, steps }
        });
        let keep: Vec<_> = keep.collect();
        self.rebuild(&keep)?;
        self.settled = sure.name;
        Ok(sure)
    }

    /// Begins a new log with nothing but these lines.
    fn rebuild(&mut self, keep: &[Kept]) -> Result<(), Error> {
        let old = std::mem::take(&mut self.log);
        self.lines.clear();
        self.any_posted = false;
        let mut renamed = HashMap::new();
        for Kept { line, floors, steps } in keep {
            let mut top = NONE;
            for (id, step) in steps {
                self.any_posted |= step.is_posted();
                top = self.log.push(top, step.event, step.vcpu, step.class, step.at, old.data(step))?;
                renamed.insert(*id, top);
            }
            self.lines.insert(*line, Marks { top, floor: NONE });
            if let Some(own) = self.chunked.get_mut(line) {
                for (floor, old_floor) in own.iter_mut().zip(floors) {
                    let sure = steps.iter().rev().find(|(id, _)| id <= old_floor);
                    *floor = sure.map_or(NONE, |(id, _)| renamed[id]);
                }
            }
        }
        // A promise about a forgotten step reaches as far as the kept ones before it.
        let renew = |raise: &mut Raise| {
            let steps = keep.binary_search_by_key(&raise.line, |kept| kept.line).map(|n| &keep[n].steps[..]);
            let mut before = steps.unwrap_or_default().iter().rev();
            let reached = match raise.what {
                Sure::Posted => before.find(|(id, _)| *id == raise.step),
                Sure::Cached | Sure::All => before.find(|(id, _)| *id <= raise.step),
            };
            raise.step = reached.map_or(NONE, |(id, _)| renamed[id]);
            raise.step != NONE
        };
        for raises in self.remembered.iter_mut().chain(&mut self.fenced) {
            raises.retain_mut(renew);
        }
        Ok(())
    }

    /// Enumerates what may survive of the line at an address: one pick for each combination, equal contents included.
    /// Empty when the line is not in doubt.
    pub fn picks(&self, address: u64) -> Box<dyn Iterator<Item = Pick> + '_> {
        let line = address / LINE;
        let Some(&marks) = self.lines.get(&line).filter(|m| m.floor != m.top) else {
            return Box::new(std::iter::empty());
        };
        let floors = self.floors(line, marks);
        let steps = self.steps_in_doubt(marks, &floors);
        if !self.chunked.contains_key(&line) {
            let torn = move |kept: usize| {
                let chunks = steps.get(kept).filter(|(_, s)| self.tears(s)).map_or(0, |(_, s)| s.chunks());
                (1..chunks).filter(move |mask| mask & !chunks == 0)
            };
            let count = self.steps_in_doubt(marks, &floors).len();
            return Box::new((0..=count).flat_map(move |kept| {
                let kept_only = std::iter::once(0);
                kept_only.chain(torn(kept)).map(move |torn| Pick::InOrder { kept: kept as u32, torn })
            }));
        }
        let counts: [u32; 8] = std::array::from_fn(|chunk| own_steps(&steps, &floors, chunk).count() as u32);
        let mut next = Some([0; 8]);
        Box::new(std::iter::from_fn(move || {
            let kept = next?;
            // Counts up, a digit for each chunk.
            let mut after = kept;
            let carried = (0..8).find(|&c| {
                after[c] = if after[c] < counts[c] { after[c] + 1 } else { 0 };
                after[c] != 0
            });
            next = carried.map(|_| after);
            Some(Pick::ByChunks(kept))
        }))
    }

    /// The image that a cut leaves now, for a choice: the lines that differ from `base`.
    ///
    /// # Errors
    /// As [`Cut::outcome`].
    pub fn image(&self, base: &impl Base, survivors: &Survivors) -> Result<Image, Error> {
        let mut cut = self.cut(base);
        let outcome = cut.outcome(survivors)?;
        cut.sure.lines.extend(outcome.lines);
        cut.sure.lines.retain(|&address, content| *content != base.line(address));
        Ok(Image { lines: cut.sure.lines, name: outcome.name })
    }
}

impl Cut<'_> {
    /// What survives for sure: the lines that differ from the base.
    pub fn sure(&self) -> &Image {
        &self.sure
    }

    /// What survives for a choice: the lines that differ from what is sure, and the name of the whole.
    ///
    /// # Errors
    /// [`Error::NotInDoubt`] for a pick on a line that is not, [`Error::BadPick`] for one that it does not have.
    pub fn outcome(&self, survivors: &Survivors) -> Result<Image, Error> {
        self.check(survivors)?;
        let mut name = self.sure.name;
        let mut lines = Vec::with_capacity(self.doubt.len());
        for doubt in &self.doubt {
            let limits = self.limits(doubt, survivors)?;
            let content = self.content(doubt, &limits);
            if content != doubt.sure {
                let address = doubt.line * LINE;
                name.exchange(doubt.named, LineName::new(address, &content));
                lines.push((address, content));
            }
        }
        Ok(Image { lines: lines.into_iter().collect(), name })
    }

    /// The newest step of each chunk that a choice lets survive.
    pub(super) fn limits(&self, doubt: &Doubt, survivors: &Survivors) -> Result<Limits, Error> {
        match survivors {
            Survivors::None => Ok(doubt.floors),
            Survivors::All => Ok([doubt.marks.top; 8]),
            Survivors::Random(seed) => Ok(self.random_limits(doubt, *seed)),
            Survivors::Picks(picks) => match picks.get(&(doubt.line * LINE)) {
                None => Ok(doubt.floors),
                Some(pick) => self.picked(doubt, pick).ok_or(Error::BadPick { address: doubt.line * LINE }),
            },
        }
    }

    /// Its steps in doubt, the oldest first.
    pub(super) fn steps(&self, doubt: &Doubt) -> &[(StepId, Step)] {
        &self.steps[doubt.steps.clone()]
    }

    /// A line's content when, in each chunk, the steps up to a limit survive.
    pub(super) fn content(&self, doubt: &Doubt, limits: &Limits) -> Content {
        let mut content = doubt.sure;
        for (id, step) in self.steps(doubt) {
            let lives = |&chunk: &usize| *id > doubt.floors[chunk] && *id <= limits[chunk];
            let chunks = (0..8).filter(lives).fold(0, |chunks, chunk| chunks | 1 << chunk);
            overlay(&mut content, step, self.medium.log.data(step), chunks);
        }
        content
    }

    fn picked(&self, doubt: &Doubt, pick: &Pick) -> Option<Limits> {
        let (floors, steps) = (doubt.floors, self.steps(doubt));
        match (pick, doubt.by_chunks) {
            (&Pick::InOrder { kept, torn }, false) => {
                let mut limits = match kept {
                    0 => floors,
                    kept => [steps.get(kept as usize - 1)?.0; 8],
                };
                if torn != 0 {
                    let (id, step) = steps.get(kept as usize)?;
                    let allowed = step.chunks();
                    if torn & !allowed != 0 || torn == allowed || !self.medium.tears(step) {
                        return None;
                    }
                    super::set_floors(&mut limits, torn, *id);
                }
                Some(limits)
            }
            (Pick::ByChunks(kept), true) => {
                let mut limits = floors;
                for (chunk, &kept) in kept.iter().enumerate().filter(|(_, kept)| **kept > 0) {
                    limits[chunk] = own_steps(steps, &floors, chunk).nth(kept as usize - 1)?;
                }
                Some(limits)
            }
            _ => None,
        }
    }

    fn random_limits(&self, doubt: &Doubt, seed: u64) -> Limits {
        let (floors, steps) = (doubt.floors, self.steps(doubt));
        let mut random = Random(seed ^ doubt.line.wrapping_mul(0xd6e8_feb8_6659_fd93));
        if doubt.by_chunks {
            let mut limits = floors;
            for (chunk, limit) in limits.iter_mut().enumerate() {
                let own: Vec<_> = own_steps(steps, &floors, chunk).collect();
                let kept = random.below(own.len() as u64 + 1) as usize;
                if kept > 0 {
                    *limit = own[kept - 1];
                }
            }
            return limits;
        }
        let kept = random.below(steps.len() as u64 + 1) as usize;
        let mut limits = if kept == 0 { floors } else { [steps[kept - 1].0; 8] };
        if let Some((id, step)) = steps.get(kept).filter(|(_, step)| self.medium.tears(step)) {
            let torn = step.chunks() & random.below(256) as u8;
            if torn != step.chunks() {
                super::set_floors(&mut limits, torn, *id);
            }
        }
        limits
    }

    /// Whether all lines that are picked are in doubt.
    pub(super) fn check(&self, survivors: &Survivors) -> Result<(), Error> {
        let Survivors::Picks(picks) = survivors else { return Ok(()) };
        let in_doubt = |address: u64| {
            let found = self.doubt.binary_search_by_key(&(address / LINE), |doubt| doubt.line);
            address.is_multiple_of(LINE) && found.is_ok()
        };
        match picks.keys().find(|address| !in_doubt(**address)) {
            Some(&address) => Err(Error::NotInDoubt { address }),
            None => Ok(()),
        }
    }
}

/// The steps in doubt that touch a chunk and are in doubt there, oldest first.
fn own_steps<'a>(
    steps: &'a [(StepId, Step)],
    floors: &'a Limits,
    chunk: usize,
) -> impl Iterator<Item = StepId> + 'a {
    let own = move |(id, step): &&(StepId, Step)| step.chunks() >> chunk & 1 == 1 && *id > floors[chunk];
    steps.iter().filter(own).map(|(id, _)| *id)
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // Multiply and shift: no bias that could matter for numbers this small.
        ((u128::from(z) * u128::from(end)) >> 64) as u64
    }
}
