//! What is refused, and whether the message says what is wrong and what helps.

use super::outputs::{options, place, with};
use super::{Place, write_data};
use crate::runs::{SAE, command, sae, sae_fails, sae_ok, start, told, write_named};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn more_threads_than_help_are_refused_with_the_number_of_cores() {
    let place = Place::with_data(300, 16);
    let data = place.name("data.h5");
    let cores = std::thread::available_parallelism().unwrap().to_string();
    let says = |text: &str, name: &str| {
        assert!(
            text.contains(name) && text.contains("1,024") && text.contains(&format!("{cores} cores")),
            "{text}"
        );
    };
    for threads in ["0", "1025", "100000", "18446744073709551615"] {
        for args in [vec!["inspect", &data], vec!["devices"], vec!["train", &data, "--dry-run"]] {
            let (status, text) = sae_fails(args.into_iter().chain(["--threads", threads]));
            assert_eq!(status, 2);
            says(&text, &format!("--threads {threads}"));
        }
    }
    for name in ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"] {
        let run = |more: &[&str]| {
            let mut command = command(["inspect", &data]);
            command.args(more).env(name, "50000").stdout(Stdio::null()).stderr(Stdio::piped());
            start(&mut command).wait_with_output().unwrap()
        };
        let (status, text) = told(&run(&["--quiet"]));
        assert_eq!(status, 2);
        says(&text, &format!("{name} 50000"));
        assert!(run(&["--threads=2"]).status.success());
    }
}

#[test]
fn a_real_number_out_of_range_is_refused_by_its_flag_before_the_data_are_read() {
    // Every real-valued option of the help, so that a new one is not forgotten.
    let help = sae_ok(["train", "--help"]);
    let real = [
        "--lr",
        "--epochs",
        "--init-gain",
        "--tau-start",
        "--tau-end",
        "--l1",
        "--weight-decay",
        "--adam-b1",
        "--adam-b2",
        "--adam-eps",
        "--aux-coef",
        "--clip-norm",
        "--ema",
    ];
    for flag in real {
        assert!(help.contains(&format!("{flag} <")), "{flag}");
        for value in ["inf", "-inf", "nan", "-1", "1e300"] {
            let (status, text) = sae_fails(["train", "no such file.h5", flag, value]);
            assert!(
                status == 2 && text.contains(&format!("{flag} ")) && text.contains("must be"),
                "{value}: {text}"
            );
            assert!(text.contains("finite") == ["inf", "-inf", "nan"].contains(&value), "{value}: {text}");
        }
    }
    let place = place();
    let config = place.path("c.toml");
    fs::write(&config, "tau-start = inf\n").unwrap();
    let (status, text) = sae_fails(["train", "no such file.h5", "--config", config.to_str().unwrap()]);
    assert!(status == 2 && text.contains("--tau-start inf"), "{text}");
    let (status, text) = sae_fails(["train", &place.name("data.h5"), "--epochs=1e30"]);
    assert!(status == 2 && text.contains("--epochs 1e30"), "{text}");
    let labels = place.name("labels.tsv");
    let overlap = ["overlap", &place.name("run"), &place.name("data.h5"), "--labels", &labels];
    for flag in ["--threshold", "--min-activation"] {
        for value in ["inf", "nan", "-1"] {
            let (status, text) = sae_fails([&overlap[..], &[&format!("{flag}={value}")]].concat());
            assert!(status == 2 && text.to_lowercase().contains(&format!("{flag} {value}")), "{text}");
        }
    }
}

/// Runs `sae` where no file may grow beyond a few blocks.
fn limited(args: &[String]) -> (i32, String) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 2; exec \"$@\"", "sh", SAE, "--quiet", "--device=cpu"]).args(args);
    told(&start(command.stdout(Stdio::null()).stderr(Stdio::piped())).wait_with_output().unwrap())
}

#[test]
fn a_file_that_cannot_grow_is_told_with_advice_that_fits_the_command() {
    let place = place();
    fs::create_dir(place.path("new")).unwrap();
    let mut commands = options(&place);
    for format in ["saelens", "openai"] {
        let args = ["export".to_owned(), place.name("run"), format!("--format={format}")];
        commands.push((args.to_vec(), "--out"));
    }
    for (args, flag) in commands {
        let (status, text) = limited(&with(&args, flag, &place.path("new/out"), &[]));
        let advice = "`ulimit -f unlimited`), then run the command again";
        assert!(status == 1 && text.contains("new/out") && text.contains(advice), "{args:?}: {text}");
        assert!(!text.contains("--resume") && !text.contains(".tmp/new"), "{args:?}: {text}");
        assert_eq!(fs::read_dir(place.path("new")).unwrap().count(), 0, "{args:?}: something is left");
    }
    // A run can go on, and the advice is a command that can be pasted.
    let run = place.name("new/run");
    let train = ["train".to_owned(), place.name("data.h5"), "--steps=5".into(), "--latents=512".into()];
    let splits = fs::metadata(place.path("run/splits.tsv")).unwrap().len();
    assert!(splits > 2048, "the limit must stop the folder from being made");
    let (status, text) = limited(&with(&train, "--out", Path::new(&run), &[]));
    assert!(status == 1 && text.contains("new/run/") && text.contains("run the command again"), "{text}");
    assert_eq!(fs::read_dir(place.path("new")).unwrap().count(), 0);
}

#[test]
fn a_full_device_is_told_with_advice_that_fits_the_command() {
    // A device of our own, as /dev/full: a fault here must not hurt the machine's.
    let place = place();
    let full = place.path("full");
    let made = Command::new("mknod").arg(&full).args(["c", "1", "7"]).output();
    if !made.is_ok_and(|output| output.status.success())
        || fs::File::options().write(true).open(&full).is_err()
    {
        println!("NOT RUN: this user may not make devices; a full device is not tested here");
        return;
    }
    for (args, flag) in options(&place) {
        let (status, text) = sae_fails(with(&args, flag, &full, &[]));
        assert!(status == 1 && text.contains("full") && text.contains("free some space"), "{text}");
        assert!(text.contains("run the command again") && !text.contains("--resume"), "{text}");
    }
    for args in [["compare", &place.name("run"), "--json"], ["inspect", &place.name("run"), "--json"]] {
        let stdout = fs::File::options().write(true).open(&full).unwrap();
        let mut command = command(args);
        let child = start(command.arg("--quiet").stdout(stdout).stderr(Stdio::piped()));
        let (status, text) = told(&child.wait_with_output().unwrap());
        assert!(status == 1 && text.contains("standard output") && text.contains("space"), "{text}");
    }
}

#[test]
fn names_that_are_not_utf_8_work_and_where_they_cannot_the_message_says_so() {
    let place = place();
    let odd = place.folder.path().join(OsStr::from_bytes(b"odd\xff"));
    fs::create_dir(&odd).unwrap();
    let at = |name: &[u8]| odd.join(OsStr::from_bytes(name));
    for (from, to) in [("data.h5", &b"data\xfe.h5"[..]), ("labels.tsv", b"labels\xfe.tsv")] {
        fs::copy(place.path(from), at(to)).unwrap();
    }
    std::os::unix::fs::symlink(place.path("run"), at(b"run\xfe")).unwrap();
    let plain: Vec<(Vec<String>, &str)> = options(&place);
    for (i, (args, flag)) in plain.into_iter().enumerate() {
        // The same command with every file named oddly.
        let args: Vec<_> = args
            .iter()
            .map(|arg| match arg {
                arg if *arg == place.name("data.h5") => at(b"data\xfe.h5").into(),
                arg if *arg == place.name("labels.tsv") => at(b"labels\xfe.tsv").into(),
                arg if *arg == place.name("run") => at(b"run\xfe").into(),
                other => std::ffi::OsString::from(other),
            })
            .collect();
        let out = at(&[i.to_string().as_bytes(), b"\xfd"].concat());
        let output = sae(args.iter().chain([&flag.into(), &out.clone().into(), &"--json".into()]));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {text}");
        assert!(fs::metadata(&out).unwrap().len() > 0);
    }
    let back = place.path("back.h5");
    fs::copy(at(b"0\xfd"), &back).unwrap();
    assert_eq!(hdf5::File::open(&back).unwrap().dataset("ids").unwrap().size(), 300);
    // A run's configuration is text and has to name the data.
    let train = |data: &Path| {
        let args = [OsStr::new("train"), data.as_os_str(), OsStr::new("--out"), at(b"new\xfd").as_os_str()]
            .map(OsStr::to_owned);
        sae(args
            .iter()
            .map(|arg| arg.as_os_str())
            .chain(["--steps=5", "--latents=64", "--quiet"].map(OsStr::new)))
    };
    let (status, text) = told(&train(&at(b"data\xfe.h5")));
    assert!(status == 2 && text.contains("not UTF-8") && text.contains("rename it"), "{text}");
    assert!(!text.contains("download"), "{text}");
    std::os::unix::fs::symlink(at(b"data\xfe.h5"), place.path("link.h5")).unwrap();
    let output = train(&place.path("link.h5"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(at(b"new\xfd").join("model.safetensors").is_file());
}

#[test]
fn a_control_character_is_told_with_its_place() {
    let place = place();
    let ids = |bad: &str| {
        (0..20).map(|n| if n == 7 { bad.to_owned() } else { format!("id{n}") }).collect::<Vec<_>>()
    };
    for (bad, told) in [
        ("a\tb", "a tab (U+0009)"),
        ("a\nb", "a line feed (U+000A)"),
        ("a\rb", "a carriage return (U+000D)"),
        ("a\u{7}b", "a control character (U+0007)"),
        ("a\u{85}b", "a control character (U+0085)"),
        ("", "is empty"),
    ] {
        write_named(&place.path("odd.h5"), &ids(bad), 16);
        for command in [vec!["train"], vec!["eval", &place.name("run")]] {
            let (status, text) = sae_fails([&command[..], &[&place.name("odd.h5")]].concat());
            assert!(status == 1 && text.contains(told) && text.contains("row 7"), "{text}");
            assert!(text.contains("odd.h5") && text.contains("--ids"), "{text}");
        }
    }
    write_data(&place.path("odd.h5"), 20, 16);
    let labels = place.path("odd.tsv");
    fs::write(&labels, "id\tkind\nid0000\ta\nid0001\tb\u{7}c\n").unwrap();
    for command in ["features", "overlap"] {
        let args =
            [command, &place.name("run"), &place.name("data.h5"), "--labels", labels.to_str().unwrap()];
        let (status, text) = sae_fails(args);
        assert!(status == 1 && text.contains("line 3") && text.contains("U+0007"), "{text}");
    }
}
