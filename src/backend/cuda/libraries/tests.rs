//! Tests of `libraries.rs`.

#![allow(clippy::unwrap_used)]

use super::copies::{choose, fits};
use super::*;
use crate::backend::cuda::places::Place;
use std::path::Path;

fn place(folder: &Path) -> Place {
    Place { reason: "test".into(), folder: folder.to_owned() }
}

fn refused<F: Functions>(need: Need, places: &[Place]) -> String {
    let text = choose::<F>(need, places, false).err().unwrap();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn a_library_that_is_nowhere_is_told_with_its_file_and_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let (places, need) = ([place(folder.path())], Need { driver: Some((13, 0)), card: None });
    let text = refused::<Nvrtc>(need, &places);
    assert!(text.contains("libnvrtc.so was looked for") && text.contains("1 folders"), "{text}");
    assert!(text.contains("pip install nvidia-cuda-nvrtc "), "{text}");
    let text = refused::<Cublas>(need, &places);
    assert!(text.contains("libcublas.so was looked for") && text.contains("nvidia-cublas`"), "{text}");
    let text = refused::<Nvrtc>(Need { driver: Some((12, 4)), card: None }, &[]);
    assert!(text.contains("nvidia-cuda-nvrtc-cu12"), "{text}");
}

#[test]
fn a_file_that_is_no_library_is_told_with_its_path_and_the_loaders_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcublas.so.13");
    std::fs::write(&path, "not a library").unwrap();
    let text = refused::<Cublas>(Need::default(), &[place(folder.path())]);
    assert!(text.contains(&path.display().to_string()) && text.contains("does not open"), "{text}");
}

#[test]
fn a_copy_must_go_with_the_driver_and_the_card() {
    let need = |driver, card| Need { driver: Some(driver), card: Some(card) };
    let (nvrtc, cublas) = (Library::Nvrtc, Library::Cublas);
    let same_major = fits(nvrtc, (12, 9), &[80, 90], need((12, 4), (9, 0)));
    assert_eq!(same_major, Ok(()), "minor versions of one major go together");
    assert_eq!(fits(cublas, (12, 8), &[], need((13, 0), (12, 0))), Ok(()));
    assert_eq!(fits(cublas, (12, 0), &[], need((13, 0), (9, 0))), Ok(()));
    for (told, words) in [
        (fits(cublas, (13, 5), &[], need((12, 4), (9, 0))), ["driver is too old", "up to 12.4"]),
        (fits(nvrtc, (11, 8), &[90], need((12, 4), (9, 0))), ["11.8 is too old", "12.0"]),
        (fits(nvrtc, (12, 4), &[80, 90], need((13, 0), (12, 0))), ["12.4", "compute capability 12.0"]),
        (fits(cublas, (12, 4), &[], need((13, 0), (12, 0))), ["12.4", "compute capability 12.0"]),
    ] {
        let text = told.unwrap_err();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn a_card_too_old_is_told_with_its_name_and_capability() {
    let card = Listed { name: "Tesla V100".into(), capability: (7, 0), memory: 1 << 34 };
    let text = card.check(2).unwrap_err();
    assert!(text.contains("cuda:2 (Tesla V100)") && text.contains("7.0") && text.contains("8.0"), "{text}");
    assert_eq!(Listed { capability: (8, 0), ..card.clone() }.check(0), Ok(()));
    assert_eq!(Listed { capability: (12, 0), ..card }.check(0), Ok(()));
}

#[test]
fn a_driver_without_a_device_points_at_what_can_hide_one() {
    let text = refusal(CUresult::CUDA_ERROR_NO_DEVICE);
    assert!(text.contains("no device") && text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
    assert!(refusal(CUresult::CUDA_ERROR_STUB_LIBRARY).contains("stub"));
    assert!(refusal(CUresult::CUDA_ERROR_UNKNOWN).contains("CUDA_ERROR_UNKNOWN"));
}
