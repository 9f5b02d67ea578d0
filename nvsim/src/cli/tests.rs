use super::*;
use clap::CommandFactory;

/// The text of a command's `--help` and those of the commands below it, each below the words that lead to it.
fn helps(command: &mut clap::Command, path: &str, into: &mut String) {
    let text = command.clone().term_width(110).render_long_help();
    *into += &format!("$ {path} --help\n{text}\n");
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        let path = format!("{path} {}", below.get_name());
        helps(below, &path, into);
    }
}

/// All texts of `--help`.
fn texts() -> String {
    let mut command = Cli::command();
    command.build();
    let mut texts = String::new();
    helps(&mut command, "nvsim", &mut texts);
    texts
}

#[test]
fn the_help_texts_are_as_reviewed() {
    let texts = texts();
    insta::assert_snapshot!(texts);
}

/// The words of an example as a shell would have them, up to a pipe, a remark, or what is done elsewhere.
fn words(example: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    let mut last = ' ';
    for character in example.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted && last == ' ' => break,
            ' ' if !quoted => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
        last = character;
    }
    let end = words.iter().position(|word| word.is_empty() || word == "|").unwrap_or(words.len());
    words.truncate(end);
    words
}

#[test]
fn every_example_can_be_typed() {
    let mut texts = texts();
    texts += include_str!("../../../README.md");
    texts += include_str!("../../../docs/guide.md");
    texts += include_str!("../../../docs/marks.md");
    texts += include_str!("../../../docs/persistence-model.md");
    let indented = |line: &'static str| {
        line.trim_start()
            .strip_prefix("nvsim ")
            .filter(|rest| line.starts_with("  ") && !rest.starts_with(" "))
    };
    let texts: &'static str = texts.leak();
    let examples: Vec<_> = texts.lines().filter_map(indented).collect();
    assert!(examples.len() > 50, "{}: {examples:?}", examples.len());
    for example in examples {
        if let Err(error) = Cli::try_parse_from(words(&format!("nvsim {example}"))) {
            panic!("nvsim {example}\n{error}");
        }
    }
}

#[test]
fn the_command_line_contradicts_itself_nowhere() {
    Cli::command().debug_assert();
}

#[test]
fn times_have_units() {
    assert_eq!(duration("1.5s"), Ok(std::time::Duration::from_millis(1500)));
    assert_eq!(duration("5m"), Ok(std::time::Duration::from_secs(300)));
    assert!(duration("-1s").is_err());
    assert!(duration("5mm").is_err());
}
