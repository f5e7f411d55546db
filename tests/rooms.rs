//! No room of the house imports upwards: `use crate::…` lines, and paths in the text, go down the list below only.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// Rooms from the ground up. A room may use those of the lines above it and its own, never one of its line's neighbours.
const FLOORS: [&[&str]; 13] = [
    &["error", "spec"],
    &["interrupt", "memory", "noise", "schedule", "text"],
    &["console", "files", "rows"],
    &["data", "model", "peers"],
    &["config"],
    &["backend"],
    &["devices", "train"],
    &["run"],
    &["analysis"],
    &["export"],
    &["report"],
    &["cli"],
    &["main", "lib"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Rooms that a text names after `crate::`, without comments: a comment may point anywhere.
fn used(text: &str) -> Vec<String> {
    let mut rooms = vec![];
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    for part in code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>()) {
        let word =
            |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match part.strip_prefix('{') {
            Some(list) => rooms.extend(list.split(',').map(|item| word(item.trim()))),
            None => rooms.push(word(&part)),
        }
    }
    rooms
}

/// Arrows that do not go down in a file of `room`.
fn wrong(room: &str, text: &str) -> Vec<String> {
    let own = floor(room).unwrap_or_else(|| panic!("the room {room} has no floor in this test"));
    let used = used(text).into_iter().filter(|to| to != room);
    used.filter_map(|to| (floor(&to)? >= own).then_some(to)).collect()
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|e| e == "rs") {
            visit(&path);
        }
    }
}

#[test]
fn no_room_imports_upwards() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = vec![];
    let mut files = 0;
    walk(&source, &mut |path| {
        let inside = path.strip_prefix(&source).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        files += 1;
        let text = std::fs::read_to_string(path).unwrap();
        found.extend(wrong(room, &text).into_iter().map(|to| format!("{} uses {to}", inside.display())));
    });
    assert!(files > 100, "{files}");
    found.sort();
    assert!(found.is_empty(), "arrows that go up:\n{}", found.join("\n"));
}

#[test]
fn an_arrow_that_goes_up_is_found() {
    assert_eq!(wrong("train", "use crate::run::folder;\nuse crate::spec::Init; // crate::cli\n"), ["run"]);
    assert_eq!(wrong("model", "fn f() { crate::report::page() }"), ["report"]);
    assert_eq!(wrong("data", "use crate::{error, model};"), ["model"]);
    assert_eq!(wrong("cli", "use crate::train::Trainer;"), [""; 0]);
}

#[test]
fn the_ground_floor_knows_no_library_of_the_upper_ones() {
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/spec");
    walk(&spec, &mut |path| {
        let text = std::fs::read_to_string(path).unwrap();
        for library in ["clap", "cudarc", "rayon", "indicatif", "hdf5", "plotters"] {
            assert!(!text.contains(&format!("{library}::")), "{} uses {library}", path.display());
        }
    });
}
