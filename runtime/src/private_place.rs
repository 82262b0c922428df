//! The check of a place for secrets: a directory that no other user can change, under parents that no other user can replace.
//!
//! **The problem.** A private file in a directory that other users can write is not private: they put another file in its place,
//! or a link to a file of their own, before or after it is written.
//!
//! **The rule.** The directory belongs to this process's user or to root, and no other user can write to it. The same holds for
//! each directory on the way to it, except that others may write to a parent with the sticky bit, such as `/tmp`, in which they
//! cannot rename or remove the entries of other users. A symbolic link on the way belongs to this user or to root as well, and is
//! followed: the directories on the way to the link and those on the way from it are judged alike. So the given path leads to the
//! same place later, too. A directory that does not exist yet is judged by its nearest parent that does.
//!
//! **On failure.** Nothing is made or written. The error names the directory, the problem and the remedy.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

/// The bits of a mode with which others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The sticky bit: only the owner of an entry may rename or remove it.
const STICKY: u32 = 0o1000;
/// The most symbolic links on the way, as the kernel has it (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Checks a directory for secrets, and returns its path without symbolic links.
///
/// # Errors
/// Another user can change the directory, one of its parents or a link on the way, or they cannot be read. The kind of the first is
/// [`io::ErrorKind::PermissionDenied`]. A `..` after a directory that does not exist is [`io::ErrorKind::InvalidInput`].
#[must_use = "a key is written only to a place that was found good"]
pub fn private_place(dir: &Path) -> io::Result<PathBuf> {
    private_place_under(Path::new("/"), dir)
}

/// Checks a directory as [`private_place`] does, in a file system with this root.
fn private_place_under(root: &Path, dir: &Path) -> io::Result<PathBuf> {
    let mut way = Way::to(root, &std::path::absolute(dir)?);
    if !way.rest.is_empty() {
        judge(dir, root, &fs::metadata(root)?, Part::Parent)?;
    }
    while let Some(name) = way.rest.pop_front() {
        if name == ".." {
            // Of the real directory so far, as the kernel has it: the root's parent is the root.
            if way.real != way.root {
                way.real.pop();
            }
            continue;
        }
        let next = way.real.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(found) if found.is_symlink() => way.follow(dir, &next, &found)?,
            Ok(found) => {
                way.real = next;
                if !way.rest.is_empty() {
                    judge(dir, &way.real, &found, Part::Parent)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                way.rest.push_front(name);
                return way.missing(dir);
            }
            Err(error) => return Err(error),
        }
    }
    judge(dir, &way.real, &fs::metadata(&way.real)?, Part::Place)?;
    Ok(way.real)
}

/// The way to a directory, as far as it has been gone.
struct Way {
    /// The root of the file system.
    root: PathBuf,
    /// The directory so far, without symbolic links.
    real: PathBuf,
    /// The names that are left.
    rest: VecDeque<OsString>,
    /// The links that were followed.
    links: usize,
}

impl Way {
    fn to(root: &Path, absolute: &Path) -> Self {
        Self { root: root.to_owned(), real: root.to_owned(), rest: names(absolute), links: 0 }
    }

    /// Goes on where a link leads.
    fn follow(&mut self, dir: &Path, link: &Path, found: &Metadata) -> io::Result<()> {
        judge(dir, link, found, Part::Link)?;
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(refused(
                dir,
                io::ErrorKind::InvalidInput,
                "too many symbolic links are on the way to it",
            ));
        }
        let target = fs::read_link(link)?;
        if target.is_absolute() {
            self.real = self.root.clone();
        }
        let mut names = names(&target);
        names.append(&mut self.rest);
        self.rest = names;
        Ok(())
    }

    /// Returns the place if the rest of the way does not exist.
    fn missing(self, dir: &Path) -> io::Result<PathBuf> {
        if self.rest.iter().any(|name| name == "..") {
            let problem =
                "the path has `..` after a directory that does not exist; name the directory without it";
            return Err(refused(dir, io::ErrorKind::InvalidInput, problem));
        }
        judge(dir, &self.real, &fs::metadata(&self.real)?, Part::Parent)?;
        Ok(self.rest.iter().fold(self.real, |place, name| place.join(name)))
    }
}

/// Returns the names in a path, without the root and `.`.
fn names(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    named.collect()
}

/// A part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The directory itself.
    Place,
    /// A directory on the way to it.
    Parent,
    /// A symbolic link on the way to it.
    Link,
}

fn judge(dir: &Path, part: &Path, found: &Metadata, kind: Part) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    // A link has no mode of its own.
    let mode = if kind == Part::Link { 0 } else { found.mode() };
    let Some(problem) = problem(user, found.uid(), mode, kind == Part::Place) else { return Ok(()) };
    let subject = match kind {
        Part::Place => String::new(),
        Part::Parent => format!("its parent {} ", part.display()),
        Part::Link => format!("the link {} ", part.display()),
    };
    Err(refused(dir, io::ErrorKind::PermissionDenied, &format!("{subject}{problem}")))
}

fn refused(dir: &Path, kind: io::ErrorKind, problem: &str) -> io::Error {
    io::Error::new(kind, format!("{} is no place for a secret: {problem}", dir.display()))
}

/// Returns the problem with a directory of this owner and mode; none if no other user than root can change it. `is_place` is
/// the directory itself, and not a parent.
fn problem(user: u32, owner: u32, mode: u32, is_place: bool) -> Option<String> {
    if owner != user && owner != 0 {
        return Some(format!(
            "belongs to another user (uid {owner}); run the command as that user, or name a directory of your own"
        ));
    }
    let others_write = mode & WRITABLE_BY_OTHERS != 0;
    let is_sticky_parent = !is_place && mode & STICKY != 0;
    (others_write && !is_sticky_parent).then(|| {
        format!(
            "can be changed by other users (mode {:04o}); run `chmod go-w` on it, or name another directory",
            mode & 0o7777
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn made(parent: &Path, name: &str, mode: u32) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_directory_that_others_can_write_is_no_place_for_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o755), made(dir.path(), "open", 0o777));
        assert_eq!(private_place(&own).unwrap(), fs::canonicalize(&own).unwrap());
        for (place, names) in [
            (open.clone(), "mode 0777"),
            (made(dir.path(), "group", 0o775), "mode 0775"),
            (made(dir.path(), "sticky", 0o1777), "mode 1777"),
            (made(&open, "inner", 0o700), "its parent"),
            (open.join("missing/deeper"), "its parent"),
        ] {
            let error = private_place(&place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn a_root_that_others_can_write_is_no_way_to_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = made(dir.path(), "root", 0o777);
        for name in ["own", "other"] {
            made(&root, name, 0o700);
        }
        // A link to an absolute path leads from the root.
        symlink("/own", root.join("other/link")).unwrap();
        for place in ["/own", "/own/new", "/missing", "/own/../own", "/other/link"] {
            let error = private_place_under(&root, Path::new(place)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            assert!(
                error.to_string().contains("its parent") && error.to_string().contains("mode 0777"),
                "{error}"
            );
        }
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        for place in ["/own", "/../own", "/other/link", "/other/link/../../own"] {
            assert_eq!(private_place_under(&root, Path::new(place)).unwrap(), root.join("own"), "{place}");
        }
    }

    #[test]
    fn a_missing_directory_is_judged_by_its_nearest_parent_and_a_sticky_parent_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let sticky = made(dir.path(), "sticky", 0o1777);
        for place in [dir.path().join("a/b"), sticky.join("a"), made(&sticky, "own", 0o700)] {
            private_place(&place).unwrap();
        }
        assert!(!dir.path().join("a").exists(), "the check makes nothing");
    }

    #[test]
    fn a_link_is_followed_and_the_place_that_it_leads_to_is_judged() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o700), made(dir.path(), "open", 0o777));
        symlink(&own, dir.path().join("good")).unwrap();
        symlink(&open, dir.path().join("bad")).unwrap();
        let place = private_place(&dir.path().join("good/new")).unwrap();
        assert_eq!(place, fs::canonicalize(&own).unwrap().join("new"));
        assert!(private_place(&dir.path().join("bad")).is_err());
    }

    #[test]
    fn a_link_that_another_user_can_replace_is_no_way_to_a_place() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o700), made(dir.path(), "open", 0o777));
        symlink(&own, open.join("link")).unwrap();
        for place in [open.join("link"), open.join("link/new"), open.join("link/../own")] {
            let error = private_place(&place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            assert!(error.to_string().contains("its parent"), "{error}");
        }
        // Neither is one that leads over such a directory, and back out of it.
        symlink(open.join("../own"), dir.path().join("detour")).unwrap();
        assert!(private_place(&dir.path().join("detour")).is_err());
        symlink("own/../own", dir.path().join("relative")).unwrap();
        assert_eq!(private_place(&dir.path().join("relative")).unwrap(), fs::canonicalize(&own).unwrap());
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(private_place(&dir.path().join("loop")).unwrap_err().to_string().contains("too many"));
    }

    #[test]
    fn a_way_out_of_a_directory_that_does_not_exist_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o700), made(dir.path(), "open", 0o777));
        let real = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(private_place(&own.join("../new")).unwrap(), real.join("new"), "this one exists");
        assert!(private_place(&own.join("../open")).unwrap_err().to_string().contains("mode 0777"));
        assert!(private_place(&own.join("..")).is_ok() && private_place(&open.join("..")).is_err());
        for place in [own.join("missing/../../open"), own.join("missing/.."), own.join("a/b/../c")] {
            let error = private_place(&place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("`..`"), "{error}");
        }
    }

    #[test]
    fn a_directory_of_another_user_is_no_place_for_a_secret() {
        assert!(problem(1000, 1000, 0o700, true).is_none());
        assert!(problem(1000, 0, 0o755, false).is_none(), "root's");
        assert!(problem(1000, 1001, 0o700, true).unwrap().contains("uid 1001"));
        assert!(
            problem(0, 1001, 0o700, true).is_some(),
            "also for root: the owner can put another file there"
        );
        assert!(problem(1000, 0, 0o1777, false).is_none(), "/tmp");
        assert!(problem(1000, 0, 0o1777, true).is_some());
    }
}
