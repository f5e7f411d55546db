//! Tests of `devices.rs`.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::places::{Place, file_in, places};
use super::*;

fn environment(pairs: &[(&str, &Path)]) -> impl Fn(&str) -> Option<String> {
    let pairs: BTreeMap<String, String> =
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.display().to_string())).collect();
    move |name| pairs.get(name).cloned()
}

#[test]
fn this_machine_is_described_whatever_it_has() {
    let report = find();
    assert!(report.cpu.threads > 0);
    assert_eq!(report.libraries.len(), 4);
    assert!(!report.looked_in.is_empty());
    for library in &report.libraries {
        assert_eq!(library.found, library.loader_opens || library.path.is_some());
    }
    let text = report.to_string();
    let device = if report.usable_gpus > 0 { "cuda:0" } else { "the CPU: " };
    let note = text.lines().last().unwrap();
    assert!(note.starts_with("`--device auto` takes ") && note.contains(device), "{text}");
    let nvrtc = &report.libraries[1];
    assert_eq!(nvrtc.version.is_some(), !report.compiles_for.is_empty(), "{text}");
    assert!(!report.compiles_for.contains(&"7.5".to_owned()), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["libraries"][0]["file"], "libcuda.so");
}

#[test]
fn without_a_driver_the_report_says_so_and_names_the_places() {
    let report = find();
    if report.libraries[0].loader_opens {
        eprintln!("SKIPPED: this machine has an NVIDIA driver");
        return;
    }
    assert!(report.gpus.is_empty() && report.driver_cuda.is_none());
    let text = report.to_string();
    assert!(text.contains("GPU        none found"), "{text}");
    assert!(text.contains("system loader"), "{text}");
}

#[test]
fn a_library_in_a_python_environment_is_found_there() {
    let folder = tempfile::tempdir().unwrap();
    let venv = folder.path().join("venv");
    let lib = venv.join("lib/python3.11/site-packages/nvidia/cu13/lib");
    std::fs::create_dir_all(&lib).unwrap();
    for name in ["libcublas.so.13", "libcublasLt.so.13", "libnvrtc-builtins.so.13.0"] {
        std::fs::write(lib.join(name), "").unwrap();
    }
    let places = places(&environment(&[("VIRTUAL_ENV", &venv)]));
    let hit = |file: &str| places.iter().find_map(|p| file_in(&p.folder, file));
    let expected = Place { reason: "VIRTUAL_ENV".into(), folder: lib.clone() };
    assert!(places.contains(&expected), "{places:?}");
    assert_eq!(file_in(&lib, "libcublas.so"), Some(lib.join("libcublas.so.13")));
    assert!(hit("libcublasLt.so").is_some());
    assert_eq!(file_in(&lib, "libnvrtc.so"), None, "the builtins are another library");
}

#[test]
fn an_environment_without_nvidia_packages_is_listed_as_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    let packages = folder.path().join("lib/python3.12/site-packages");
    std::fs::create_dir_all(&packages).unwrap();
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::write(bin.join("python3"), "").unwrap();
    let places = places(&environment(&[("PATH", &bin)]));
    let expected = Place { reason: "python3 on PATH".into(), folder: packages.join("nvidia") };
    assert!(places.contains(&expected), "{places:?}");
}

#[test]
fn settings_come_before_conventions_and_no_folder_is_listed_twice() {
    let cuda = Path::new("/opt/some cuda");
    let places = places(&environment(&[
        ("LD_LIBRARY_PATH", Path::new("/a::/opt/some cuda/lib64")),
        ("CUDA_HOME", cuda),
        ("CUDA_PATH", cuda),
    ]));
    let reasons: Vec<&str> = places.iter().take(3).map(|p| p.reason.as_str()).collect();
    assert_eq!(reasons, ["LD_LIBRARY_PATH", "LD_LIBRARY_PATH", "CUDA_HOME"]);
    let folders: std::collections::BTreeSet<_> = places.iter().map(|p| &p.folder).collect();
    assert_eq!(folders.len(), places.len());
}

#[test]
fn threads_of_one_core_are_one_core() {
    let info = "processor : 0\nphysical id : 0\ncore id : 0\n\nprocessor : 1\nphysical id : 0\ncore id : 0\n\n\
                processor : 2\nphysical id : 1\ncore id : 0\n";
    assert_eq!(physical_cores(info), Some(2));
    assert_eq!(physical_cores(""), None);
}
