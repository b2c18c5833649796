//! Random layers against a simple model of what they mean.

use super::image::{Tree, fsck, read};
use crate::tests::tarball::{Item, Tarball};
use std::collections::BTreeMap;

/// A generator of numbers that are the same in every run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A file system of paths: kind and a number that says which entry it is.
type Model = BTreeMap<String, (char, u64)>;

fn remove(model: &mut Model, path: &str) {
    let below = format!("{path}/");
    model.retain(|other, _| other != path && !other.starts_with(&below));
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// Whether an entry at this path would be below something that is no directory.
fn blocked(model: &Model, path: &str) -> bool {
    parents(path).any(|parent| model.get(parent).is_some_and(|(kind, _)| *kind != 'd'))
}

/// One layer: the archive, and what it does to the model.
fn layer(random: &mut Random, model: &mut Model, serial: &mut u64) -> Vec<u8> {
    let mut tar = Tarball::default();
    let lower = model.clone();
    let mut own = Model::new();
    for _ in 0..random.below(30) {
        let depth = 1 + random.below(3);
        let parts: Vec<String> = (0..depth).map(|_| random.below(4).to_string()).collect();
        let path = parts.join("/");
        *serial += 1;
        let item = Item {
            mtime: *serial,
            ..Item::default()
        };
        let choice = random.below(10);
        // Whiteouts mean lower layers only, wherever in the archive they stand.
        if choice < 3 {
            if blocked(model, &path) {
                continue;
            }
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let slash = if parent.is_empty() { "" } else { "/" };
            let hidden: Vec<String> = if choice == 0 {
                tar = tar.file(&format!("{parent}{slash}.wh..wh..opq"), b"");
                let below = format!("{parent}{slash}");
                let inside = lower.keys().filter(|other| other.starts_with(&below));
                inside.cloned().collect()
            } else {
                tar = tar.file(&format!("{parent}{slash}.wh.{name}"), b"");
                let below = format!("{path}/");
                let inside = |other: &&String| **other == path || other.starts_with(&below);
                lower.keys().filter(inside).cloned().collect()
            };
            for path in hidden {
                if !own.contains_key(&path) {
                    model.remove(&path);
                }
            }
            continue;
        }
        if blocked(model, &path) {
            continue;
        }
        let kind = ['f', 'f', 'f', 'd', 'd', 'l', 'p'][choice as usize - 3];
        for parent in parents(&path) {
            let made = model.entry(parent.to_owned()).or_insert(('d', 0));
            own.insert(parent.to_owned(), *made);
        }
        let is_directory = model.get(&path).is_some_and(|(kind, _)| *kind == 'd');
        if !(kind == 'd' && is_directory) {
            remove(model, &path);
            remove(&mut own, &path);
        }
        model.insert(path.clone(), (kind, *serial));
        own.insert(path.clone(), (kind, *serial));
        let size = random.below(3) * random.below(9000);
        let data = vec![*serial as u8; size as usize];
        tar = match kind {
            'f' => tar.item(&Item {
                path: &path,
                data: &data,
                ..item
            }),
            'd' => tar.item(&Item {
                path: &path,
                kind: b'5',
                ..item
            }),
            'l' => tar.item(&Item {
                path: &path,
                kind: b'2',
                link: "/nowhere",
                ..item
            }),
            _ => tar.item(&Item {
                path: &path,
                kind: b'6',
                ..item
            }),
        };
    }
    tar.end()
}

#[test]
fn random_layers_mean_what_the_model_says() {
    let mut random = Random(0x5eed_1234_5678_9abc);
    for round in 0..100 {
        let (mut model, mut serial) = (Model::new(), 0);
        let layers: Vec<Vec<u8>> = (0..=random.below(6))
            .map(|_| layer(&mut random, &mut model, &mut serial))
            .collect();
        let image = super::image::build(&layers).unwrap();
        // The checker is a process; every twentieth image is enough for it.
        if round % 25 == 0 {
            fsck(&image);
        }
        let tree: Tree = read(&image);
        let got: Model = tree
            .iter()
            .skip(1)
            .map(|(path, seen)| {
                let path = String::from_utf8(path.clone()).unwrap();
                if seen.kind == 'f' {
                    assert!(seen.content.iter().all(|byte| *byte == seen.mtime.0 as u8));
                }
                (path, (seen.kind, seen.mtime.0 as u64))
            })
            .collect();
        assert_eq!(got, model, "round {round}");
    }
}
