//! The README and the book: their commands run, their links lead somewhere, and the flags they name exist.
//!
//! A block marked `sh` is run, line by line, in an empty folder with `examples/` in it and `sae` on the path. One marked
//! `sh,ignore` is not: it needs data that are not here, or builds the program itself. The README's first block builds and
//! tests the program, which CI does anyway, and is known by its text.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README and chapters, by path.
fn pages() -> Vec<(PathBuf, String)> {
    let chapters = std::fs::read_dir(root().join("docs/src")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        chapters.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    paths.push(root().join("README.md"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The blocks of a page that are marked `mark`.
fn blocks(page: &str, mark: &str) -> Vec<String> {
    let mut found = vec![];
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{mark}") {
            found.push(
                lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect(),
            );
        }
    }
    found
}

/// The text of a page outside of its blocks.
fn prose(page: &str) -> String {
    let mut inside = false;
    let lines = page.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn sae() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sae"))
}

#[test]
fn the_commands_of_readme_and_book_run() {
    let mut run = 0;
    for (path, page) in pages() {
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(root().join("examples"), place.path().join("examples")).unwrap();
        for block in blocks(&page, "sh").iter().filter(|block| !block.contains("./quickstart.sh ")) {
            let path_variable =
                format!("{}:{}", sae().parent().unwrap().display(), std::env::var("PATH").unwrap());
            let output = Command::new("bash")
                .args(["-euo", "pipefail", "-c", block])
                .current_dir(place.path())
                .env("PATH", path_variable)
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{block}{told}", path.display());
            run += 1;
        }
    }
    assert!(run >= 8, "only {run} blocks were run");
}

#[test]
fn a_block_is_known_by_its_mark_and_a_command_that_fails_is_seen() {
    let page = "text\n```sh\nfalse\n```\n```sh,ignore\nsae nonsense\n```\n";
    assert_eq!(blocks(page, "sh"), ["false\n"]);
    assert_eq!(prose(page), "text\n");
    let status =
        Command::new("bash").args(["-euo", "pipefail", "-c", &blocks(page, "sh")[0]]).status().unwrap();
    assert!(!status.success());
}

/// The heads of a page as links name them.
fn anchors(page: &str) -> BTreeSet<String> {
    let heads = page.lines().filter_map(|line| line.strip_prefix('#'));
    heads
        .map(|head| {
            let kept = head.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, page) in pages() {
        for link in prose(&page).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http") {
                continue;
            }
            links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() {
                let found = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(found.contains(anchor), "{}: {link} is none of {found:?}", path.display());
            }
        }
    }
    assert!(links > 40, "{links}");
    let summary = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    for (path, _) in pages().iter().filter(|(path, _)| path.starts_with(root().join("docs/src"))) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "{name} is not in SUMMARY.md"
        );
    }
}

fn help(command: &[&str]) -> String {
    let output = Command::new(sae()).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Words that stand where a flag could: `--lr`.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '-'));
    words
        .filter(|word| word.len() > 3 && word.starts_with("--") && !word.starts_with("---"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn subcommands_and_flags_that_are_named_exist() {
    let all = help(&[]);
    let commands: Vec<&str> = all
        .lines()
        .skip_while(|line| *line != "Commands:")
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty() && word.chars().all(char::is_alphabetic) && *word != "help")
        .collect();
    assert!(commands.contains(&"train"), "{commands:?}");
    let known: BTreeSet<String> = commands.iter().flat_map(|command| flags(&help(&[command]))).collect();
    // Of other programs: cargo, git, mdbook; torchrun, mpirun, srun, sbatch.
    let programs = ["--open", "--path", "--release", "--features", "--version", "--test"];
    let launchers = [
        "--no-python",
        "--nproc-per-node",
        "--map-by",
        "--ntasks-per-node",
        "--gpus-per-node",
        "--cpus-per-task",
        "--kill-on-bad-exit",
        "--nodes",
        "--time",
        "--signal",
        "--requeue",
        "--open-mode",
    ];
    let foreign = [&programs[..], &launchers].concat();
    for (path, page) in pages() {
        for flag in flags(&page) {
            assert!(known.contains(&flag) || foreign.contains(&flag.as_str()), "{}: {flag}", path.display());
        }
        for after in page.split("`sae ").skip(1).chain(page.split("\nsae ").skip(1)) {
            let word: String = after.chars().take_while(|c| c.is_alphabetic()).collect();
            assert!(word.is_empty() || commands.contains(&word.as_str()), "{}: sae {word}", path.display());
        }
    }
}

/// First cells of the rows of the table that follows `head`.
fn first_cells(page: &str, head: &str) -> BTreeSet<String> {
    let at = page.find(head).unwrap_or_else(|| panic!("no table after {head:?}"));
    let table =
        page[at..].lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    table.skip(2).map(|row| row.split('`').nth(1).unwrap().to_owned()).collect()
}

#[test]
fn the_tables_of_the_model_file_are_the_model_file() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    let data = root().join("examples/data/prott5_uniprot_3ftx.h5");
    let args = ["--latents=16", "-k=2", "--steps=2", "--anneal-steps=0", "--device=cpu", "--quiet"];
    let trained =
        Command::new(sae()).arg("train").arg(data).args(args).arg("--out").arg(&run).output().unwrap();
    assert!(trained.status.success());
    let bytes = std::fs::read(run.join("model.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let page = std::fs::read_to_string(root().join("docs/src/formats.md")).unwrap();
    let tensors: BTreeSet<String> = header.tensors().into_keys().collect();
    let described = |head: &str, only_some: &[&str]| {
        let mut cells = first_cells(&page, head);
        only_some.iter().for_each(|name| assert!(cells.remove(*name), "{name}"));
        cells
    };
    assert_eq!(described("Tensors are float32", &["threshold"]), tensors);
    assert_eq!(first_cells(&page, "The metadata are texts"), metadata.keys().cloned().collect());
    let architecture: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&metadata["architecture"]).unwrap();
    assert_eq!(described("`architecture` has", &["prefixes"]), architecture.keys().cloned().collect());
    assert!(page.contains(&format!("number of this format: {}", metadata["schema"])));
}

/// The chapter of options, made from their table. `SAE_WRITE_DOCS=1` writes it.
#[test]
fn the_chapter_of_options_is_their_table() {
    let chapter = topk_sae::config::options_chapter();
    let path = root().join("docs/src/options.md");
    if std::env::var_os("SAE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &chapter).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == chapter,
        "docs/src/options.md is not what `SAE_WRITE_DOCS=1 cargo test --test docs` writes"
    );
}

/// The table of what several GPUs cost, on paper. `SAE_WRITE_DOCS=1` writes it.
#[test]
#[cfg(feature = "cuda")]
fn the_table_of_what_ranks_cost_is_computed() {
    let (begin, end) = ("<!-- table: cost of ranks -->\n", "<!-- end of the table -->");
    let path = root().join("docs/src/several-gpus.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once(end).unwrap();
    let table = topk_sae::backend::cuda::cost::table();
    let written = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("SAE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap();
    assert!(
        there == written,
        "{} is not what `SAE_WRITE_DOCS=1 cargo test --test docs` writes",
        path.display()
    );
}

/// The options of `topk_sae.train` with their types, made from the same table. `SAE_WRITE_DOCS=1` writes them.
#[test]
fn the_options_of_python_are_their_table() {
    let mut text = String::from(
        "\"\"\"The options of a training, as a type checker sees them.\n\nMade from the table of options: SAE_WRITE_DOCS=1 cargo test --test docs\n\"\"\"\n\nfrom __future__ import annotations\n\nfrom typing import Literal, TypedDict\n\n\nclass Options(TypedDict, total=False):\n    \"\"\"The options of `sae train`, with `_` in place of `-`; None is the default.\"\"\"\n",
    );
    let mut heading = "";
    for row in topk_sae::config::Options::table() {
        // Arguments of their own there.
        if ["ids", "groups"].contains(&row.key.as_str()) {
            continue;
        }
        if row.heading != heading {
            heading = row.heading;
            text.push_str(&format!("\n    # {heading}\n"));
        }
        let takes = |text: &str| (row.check)(text).is_ok();
        let words: Vec<String> = row.words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let mut types = vec![];
        if !words.is_empty() {
            types.push(format!("Literal[{}]", words.join(", ")));
        } else if takes("no such word") {
            types.push("str".into());
        } else {
            let kinds = [("true", "bool"), ("1.5", "float"), ("7", "int")];
            types.extend(kinds.iter().find(|(text, _)| takes(text)).map(|(_, name)| (*name).to_owned()));
            // All are words of the type; those of this option are in its help.
            let words = ["auto", "full", "all"].into_iter();
            let special = words.filter(|word| takes(word) && row.help.contains(&format!("`{word}`")));
            types.extend(special.map(|word| format!("Literal[\"{word}\"]")));
            if takes("0=33") {
                types.push("str".into());
            }
        }
        types.push("None".into());
        let default = row.defaults().map_or(String::new(), |default| format!(" [default: {default}]"));
        let help = format!("{}{default}", row.help);
        let mut lines = vec![String::from("#")];
        for word in help.split_whitespace() {
            let line = lines.last_mut().unwrap();
            if line.len() + word.len() > 110 {
                lines.push(format!("# {word}"));
            } else {
                line.push_str(&format!(" {word}"));
            }
        }
        for line in lines {
            text.push_str(&format!("    {line}\n"));
        }
        text.push_str(&format!("    {}: {}\n", row.key.replace('-', "_"), types.join(" | ")));
    }
    let path = root().join("python/package/topk_sae/_options.py");
    if std::env::var_os("SAE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{} is not what `SAE_WRITE_DOCS=1 cargo test --test docs` writes", path.display());
}
