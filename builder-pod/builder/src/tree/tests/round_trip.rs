//! Whatever a tree holds, its layer unpacks to the same tree; and so does what changed, over what it changed.

use proptest::prelude::*;

use super::diffing::written;
use super::unpacking::unpacked;
use super::*;
use crate::tree::diff;

/// One file: path, kind, mode, owner, seconds, content or target.
type Item = (Vec<String>, u8, u32, u32, i64, String);

fn items() -> impl Strategy<Value = Vec<Item>> {
    let name = prop_oneof![
        4 => "[a-c]",
        1 => "[a-z .*\\-\n]{2,12}",
        1 => "[é-üあ-お]{1,4}",
        1 => "[xy]{90,130}",
    ]
    .prop_filter("no component of its own", |name| name != "." && name != ".." && !name.starts_with(".wh."));
    let path = prop::collection::vec(name, 1..4);
    prop::collection::vec((path, 0u8..5, 0u32..0o10000, 0u32..65535, -10i64..4_000_000_000, ".{0,50}"), 0..25)
}

/// Makes them, as far as they fit together.
fn make(items: &[Item]) -> Tree {
    let tree = Tree::new();
    let mut first: Option<Vec<u8>> = None;
    for (path, kind, mode, owner, seconds, text) in items {
        let mut dir = at::open_dir(&tree.fd, b"").unwrap();
        let mut fits = true;
        for part in &path[..path.len() - 1] {
            let _ = rustix::fs::mkdirat(&dir, part.as_str(), Mode::from_raw_mode(0o755));
            match at::open_dir(&dir, part.as_bytes()) {
                Ok(next) => dir = next,
                Err(_) => fits = false,
            }
        }
        let name = path[path.len() - 1].as_str();
        if !fits || at::look(&dir, name.as_bytes()).unwrap().is_some() {
            continue;
        }
        let owner = crate::engine::Owner { uid: *owner, gid: owner / 2 };
        let meta = at::Meta { mode: *mode, owner, mtime: (*seconds, 0), capability: None };
        match kind {
            0 => {
                rustix::fs::mkdirat(&dir, name, Mode::empty()).unwrap();
                at::dress(at::open_dir(&dir, name.as_bytes()).unwrap(), &meta).unwrap();
            }
            1 if !text.is_empty() && !text.contains('\0') => {
                rustix::fs::symlinkat(text.as_str(), &dir, name).unwrap();
                at::dress_at(&dir, name.as_bytes(), &meta, true).unwrap();
            }
            2 => {
                rustix::fs::mknodat(&dir, name, FileType::Fifo, Mode::empty(), 0).unwrap();
                at::dress_at(&dir, name.as_bytes(), &meta, false).unwrap();
            }
            3 if first.is_some() => {
                let from = first.as_deref().unwrap();
                rustix::fs::linkat(&tree.fd, from, &dir, name, rustix::fs::AtFlags::empty()).unwrap();
            }
            _ => {
                let mut file = at::create_file(&dir, name.as_bytes()).unwrap();
                file.write_all(text.as_bytes()).unwrap();
                at::dress(&file, &meta).unwrap();
                first.get_or_insert_with(|| path.join("/").into_bytes());
            }
        }
    }
    tree
}

/// Everything but the times of the directories that were changed by making what is in them.
fn with_times(tree: &Tree) -> BTreeMap<String, String> {
    let mut shown = tree.show();
    for (path, what) in &mut shown {
        let stat = rustix::fs::statat(
            at::open_dir(&tree.fd, b"").unwrap(),
            path.as_str(),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        *what += &format!(
            " at {} links {}",
            stat.st_mtime,
            if what.starts_with("dir") { 0 } else { stat.st_nlink }
        );
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_tree_survives_its_layer(items in items()) {
        if !root() {
            return Ok(());
        }
        let tree = make(&items);
        let (tar, found) = written(|out| diff(tree.fd(), None, &[], None, out, None)).unwrap();
        let (again, unpacked) = unpacked(&tar);
        prop_assert_eq!(with_times(&again), with_times(&tree));
        prop_assert_eq!(unpacked.size, tar.len() as u64);
        prop_assert!(unpacked.implied.is_empty());
        prop_assert_eq!(found.entries, tree.show().len() as u64);
        let (second, _) = written(|out| diff(again.fd(), None, &[], None, out, None)).unwrap();
        prop_assert!(second == tar, "the same tree gives the same bytes");
        // Over itself nothing changed.
        let (none, _) = written(|out| diff(again.fd(), Some(tree.fd()), &[], None, out, None)).unwrap();
        prop_assert_eq!(listing(&none), Vec::<String>::new());
    }
}
