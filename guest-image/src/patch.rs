//! Applying a unified diff, strictly: every line of context and every line taken away must be there as the diff has it.
//! Only the place may have moved, and then to one place alone.

/// The changes to one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FilePatch {
    /// Path from the top of the source.
    pub path: String,
    /// The file does not exist before.
    new: bool,
    hunks: Vec<Hunk>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Hunk {
    /// Where it was made, counted from 0.
    line: usize,
    before: Vec<String>,
    after: Vec<String>,
}

/// Reads the files and hunks of a patch; text before, between and after them is for humans.
pub(crate) fn parse(text: &str) -> Result<Vec<FilePatch>, String> {
    let mut files: Vec<FilePatch> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let named =
            line.strip_prefix("--- ").zip(lines.peek().and_then(|(_, next)| next.strip_prefix("+++ ")));
        if let Some((old, new)) = named {
            let path = path_of(new).ok_or_else(|| format!("line {}: no file is named", at + 2))?;
            files.push(FilePatch { path, new: old.starts_with("/dev/null"), hunks: Vec::new() });
            lines.next();
        } else if let Some(range) = line.strip_prefix("@@ -") {
            let bad = || format!("line {}: `{line}` is no hunk", at + 1);
            let file = files.last_mut().ok_or_else(bad)?;
            let (start, before, after) = ranges(range).ok_or_else(bad)?;
            let mut hunk = Hunk { line: start.saturating_sub(1), ..Hunk::default() };
            while hunk.before.len() < before || hunk.after.len() < after {
                let (at, line) = lines.next().ok_or("the patch is truncated within a hunk")?;
                let text = line.get(1..).unwrap_or_default().to_owned();
                match line.as_bytes().first() {
                    Some(b'-') => hunk.before.push(text),
                    Some(b'+') => hunk.after.push(text),
                    Some(b' ') | None => {
                        hunk.before.push(text.clone());
                        hunk.after.push(text);
                    }
                    _ => return Err(format!("line {}: `{line}` belongs to no hunk", at + 1)),
                }
            }
            file.hunks.push(hunk);
        }
    }
    match files.iter().find(|file| file.hunks.is_empty()) {
        _ if files.is_empty() => Err("it changes no file".into()),
        Some(file) => Err(format!("it names {} and changes nothing there", file.path)),
        None => Ok(files),
    }
}

/// `b/fs/dax.c`, perhaps followed by a tab and a date, as `fs/dax.c`. A path may not leave the source.
fn path_of(name: &str) -> Option<String> {
    let (_, path) = name.split('\t').next()?.trim().split_once('/')?;
    let inside = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    (inside && name.starts_with("b/")).then(|| path.to_owned())
}

/// `1,7 +1,8 @@ function` as start, old length, new length.
fn ranges(text: &str) -> Option<(usize, usize, usize)> {
    let (ranges, _) = text.split_once(" @@")?;
    let (old, new) = ranges.split_once(" +")?;
    let range = |text: &str| match text.split_once(',') {
        Some((start, length)) => Some((start.parse().ok()?, length.parse().ok()?)),
        None => Some((text.parse().ok()?, 1)),
    };
    let ((start, before), (_, after)) = (range(old)?, range(new)?);
    Some((start, before, after))
}

impl FilePatch {
    /// The file after the patch. `original` is `None` when there is no such file.
    pub(crate) fn apply(&self, original: Option<&str>) -> Result<String, String> {
        let original = match (original, self.new) {
            (Some(_), true) => return Err(format!("{} is to be made, but is there already", self.path)),
            (None, false) => return Err(format!("there is no {}", self.path)),
            (text, _) => text.unwrap_or_default(),
        };
        let lines: Vec<&str> = original.lines().collect();
        let mut out: Vec<&str> = Vec::new();
        let mut done = 0;
        let mut moved = 0_isize;
        for (number, hunk) in self.hunks.iter().enumerate() {
            let place = hunk.place(&lines, done, moved).ok_or_else(|| {
                format!("hunk {} of {} does not apply near line {}", number + 1, self.path, hunk.line + 1)
            })?;
            out.extend(&lines[done..place]);
            out.extend(hunk.after.iter().map(String::as_str));
            done = place + hunk.before.len();
            moved = place as isize - hunk.line as isize;
        }
        out.extend(&lines[done..]);
        Ok(out.join("\n") + "\n")
    }
}

impl Hunk {
    /// Where the hunk applies at or after line `from`: where it was made, moved as the hunk before; else at the only
    /// place that is like it.
    fn place(&self, lines: &[&str], from: usize, moved: isize) -> Option<usize> {
        let fits = |at: usize| {
            let there = at.checked_add(self.before.len()).and_then(|end| lines.get(at..end));
            at >= from && there.is_some_and(|there| there.iter().eq(self.before.iter()))
        };
        if self.before.is_empty() {
            return lines.is_empty().then_some(0);
        }
        let expected = self.line.checked_add_signed(moved);
        if let Some(at) = expected.filter(|&at| fits(at)) {
            return Some(at);
        }
        let mut places = (from..lines.len()).filter(|&at| fits(at));
        places.next().filter(|_| places.next().is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATCH: &str = "Why.\n\n--- a/d/f.c\n+++ b/d/f.c\n@@ -2,3 +2,3 @@ int f\n b\n-c\n+C\n d\n\
                         @@ -6,2 +6,3 @@\n f\n+new\n g\n--- /dev/null\n+++ b/d/n.h\n@@ -0,0 +1,2 @@\n+one\n+two\n";

    fn apply(text: &str) -> Result<String, String> {
        parse(PATCH).unwrap()[0].apply(Some(text))
    }

    #[test]
    fn hunks_apply_where_they_were_made_and_where_they_have_moved() {
        assert_eq!(apply("a\nb\nc\nd\ne\nf\ng\n").unwrap(), "a\nb\nC\nd\ne\nf\nnew\ng\n");
        assert_eq!(apply("0\n0\na\nb\nc\nd\ne\nf\ng\n").unwrap(), "0\n0\na\nb\nC\nd\ne\nf\nnew\ng\n");
    }

    #[test]
    fn what_is_not_exactly_there_is_refused() {
        assert!(apply("a\nb\nx\nd\ne\nf\ng\n").unwrap_err().contains("hunk 1 of d/f.c"));
        // Two places are like it, and neither is where it was made.
        assert!(apply("b\nc\nd\n0\n0\nb\nc\nd\nf\ng\n").is_err());
        assert!(parse(PATCH).unwrap()[0].apply(None).is_err());
    }

    #[test]
    fn new_files_are_new() {
        let new = &parse(PATCH).unwrap()[1];
        assert_eq!((new.path.as_str(), new.apply(None).unwrap().as_str()), ("d/n.h", "one\ntwo\n"));
        assert!(new.apply(Some("x\n")).is_err());
    }

    #[test]
    fn paths_stay_within_the_source() {
        for path in ["b/../etc/passwd", "/etc/passwd", "b//x", "x"] {
            assert!(parse(&format!("--- a/x\n+++ {path}\n@@ -1 +1 @@\n-a\n+b\n")).is_err(), "{path}");
        }
    }

    #[test]
    fn truncated_and_empty_patches_are_refused() {
        assert!(parse(&PATCH[..PATCH.len() - 5]).unwrap_err().contains("truncated"));
        assert!(parse("nothing\n").is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "([-+ @]{1,4}[a-b0-3, /]{0,6}\n){0,12}") {
            for file in parse(&text).into_iter().flatten() {
                let _ = file.apply(Some(&text));
            }
        }
    }
}
