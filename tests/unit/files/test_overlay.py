"""Which directories get an overlay, on made-up hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_nsisolate.core.linux import mountinfo
from pytest_nsisolate.core.linux.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from pytest_nsisolate.files import foreign_owners, hide, overlay
from pytest_nsisolate.files.host_tree import Entry, HostTree, Mounted, ancestors, by_path
from pytest_nsisolate.files.overlay import Covered, Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Owner(0, 0, all_ids=True)
USER = Owner(1000, 1000, all_ids=False)

EXT4 = Mounted("ext4", 0)


def directory(name: str, mode: int = 0o755, uid: int = 0, *, searchable: bool = True) -> Entry:
    return Entry(name, "dir", mode, uid, uid, searchable=searchable)


USUAL = (
    Entry("bin", "link", 0o777, 0, 0, "usr/bin"),
    *(directory(name) for name in ("dev", "etc", "home", "mnt", "proc", "run", "sys", "usr")),
    directory("tmp", 0o1777),
    directory("lost+found", 0o700, searchable=False),
    Entry("readme", "file", 0o644, 0, 0, size=10),
)


def host(
    mounts: Mapping[str, Mounted] | None = None,
    listings: Mapping[str, tuple[Entry, ...] | None] | None = None,
    directories: Mapping[str, Entry] | None = None,
) -> HostTree:
    """A host with one file system and what is given."""
    return HostTree(
        {"/": EXT4, "/proc": Mounted("proc", 0), "/sys": Mounted("sysfs", 0), **(mounts or {})},
        {"/": USUAL, **(listings or {})},
        {"/": directory(""), **(directories or {})},
    )


NOTHING = Covered()
TMP = Covered(("/tmp",))


def pieces(
    tree: HostTree, owner: Owner = ROOT, covered: Covered = TMP, apart: Iterable[str] = ()
) -> dict[str, str]:
    """Paths, and why each one is no overlay."""
    layout = overlay.lay_out(tree, owner, covered, apart)
    return {piece.path: piece.why for piece in layout.pieces}


def overlays(found: dict[str, str]) -> set[str]:
    return {path for path, why in found.items() if not why}


def test_usual_host() -> None:
    """Each directory of the root gets one; a link is made anew; a private one is left empty."""
    found = pieces(host())
    assert overlays(found) == {"/etc", "/home", "/mnt", "/run", "/usr"}
    assert "closed" in found["/lost+found"]
    assert "devices" in found["/dev"]
    assert not {"/proc", "/tmp", "/bin"} & set(found)
    entries = overlay.lay_out(host(), ROOT, TMP, []).entries
    kinds = {path: kind for path, kind, *_ in entries}
    assert kinds["/bin"] == "link"
    assert kinds["/tmp"] == kinds["/proc"] == "dir"
    assert kinds["/readme"] == "file"


def test_empty_directories() -> None:
    """One without files needs no overlay: it can be written to as the skeleton can."""
    listing = (directory("a")._replace(empty=True), directory("b")._replace(empty=True))
    tree = host({"/mnt/b": EXT4}, {"/mnt": listing})
    found = pieces(tree)
    assert "/mnt/a" not in found
    assert "/mnt/b" in overlays(found)


def test_suite_below_tmp() -> None:
    assert "/tmp" in overlays(pieces(host(), covered=Covered(("/tmp",), ("/tmp/suite",))))


def test_what_else_is_below_tmp_does_not_matter() -> None:
    """With a mount in it, /tmp is put together of what is brought back, and of that alone."""
    many = tuple(directory(str(number)) for number in range(overlay.MANY_OVERLAYS + 1))
    needed = ("/tmp/suite", "/tmp/env/venv")
    tree = host(
        {"/tmp/env": EXT4, "/tmp/other/disk": EXT4},
        {"/tmp": (*many, directory("suite"), directory("env"), directory("other"))},
    )
    found = pieces(tree, covered=Covered(("/tmp",), needed))
    assert {path for path in overlays(found) if path.startswith("/tmp")} == {
        "/tmp/suite",
        "/tmp/env",
    }
    assert not {path for path, why in found.items() if why and path.startswith("/tmp")}
    entries = overlay.lay_out(tree, ROOT, Covered(("/tmp",), needed), []).entries
    made = {path for path, *_ in entries if path.startswith("/tmp/")}
    assert made == {"/tmp/suite", "/tmp/env"}
    # Where nothing covers it, all of it would have to be there.
    assert "directories" in pieces(tree, covered=NOTHING)["/tmp"]


def test_directory_with_mounts_is_made_anew() -> None:
    """Its directories get overlays of their own, the mount too."""
    tree = host(
        {"/mnt/data/disk": EXT4},
        {
            "/mnt": (directory("data"), directory("other"), Entry("f", "file", 0o600, 0, 0)),
            "/mnt/data": (directory("disk"), Entry("l", "link", 0o777, 0, 0, "disk")),
        },
    )
    found = pieces(tree)
    assert {"/mnt/data/disk", "/mnt/other"} <= overlays(found)
    assert not {"/mnt", "/mnt/data"} & set(found)


def test_files_that_container_engines_mount() -> None:
    """A mount on a file makes the directory one that is made anew."""
    tree = host(
        {"/etc/hosts": EXT4, "/etc/resolv.conf": EXT4},
        {"/etc": (directory("ssl"), *(Entry(name, "file", 0o644, 0, 0) for name in ("hosts",)))},
    )
    assert "/etc/ssl" in overlays(pieces(tree))
    entries = overlay.lay_out(tree, ROOT, NOTHING, []).entries
    assert ("/etc/hosts", "file", 0o644, 0, 0, "/etc/hosts") in entries


@pytest.mark.parametrize(
    "kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "fuse", "vfat", "autofs", "tracefs"]
)
def test_other_file_systems(kind: str) -> None:
    """Of networks, FUSE, DOS and the kernel's there is none, and it is said why."""
    tree = host({"/mnt/x": Mounted(kind, 0)}, {"/mnt": (directory("x"), directory("y"))})
    found = pieces(tree)
    assert found["/mnt/x"]
    assert "/mnt/y" in overlays(found)


def test_read_only_on_the_host() -> None:
    tree = host({"/mnt/x": Mounted("squashfs", MS_RDONLY)}, {"/mnt": (directory("x"),)})
    assert "so it is on the host" in pieces(tree)["/mnt/x"]


def test_many_directories() -> None:
    """One with too many, or that can't be listed, is bound whole."""
    many = tuple(directory(str(number)) for number in range(overlay.MANY_OVERLAYS + 1))
    for listing in (many, None):
        tree = host({"/mnt/1": EXT4}, {"/mnt": listing})
        assert pieces(tree)["/mnt"]
        assert "/mnt/1" not in pieces(tree)


def test_many_mounts() -> None:
    """So is one with a whole lot of mounts, as snaps are."""
    mounts = {f"/mnt/{number}/x": EXT4 for number in range(overlay.MANY_OVERLAYS + 1)}
    assert "file systems" in pieces(host(mounts, {"/mnt": (directory("1"),)}))["/mnt"]


def test_apart() -> None:
    """A user's checkout below other people's directories gets an overlay of its own."""
    path = "/home/shared/me/suite"
    chain = {
        "/home": directory("home"),
        "/home/shared": directory("shared"),
        "/home/shared/me": directory("me", uid=1000),
        path: directory("suite", uid=1000),
    }
    tree = host(directories=chain)
    assert path in overlays(pieces(tree, USER, apart=[path]))
    assert path not in pieces(tree, ROOT, apart=[path])
    own = {**chain, "/home/shared": directory("shared", uid=1000)}
    assert path not in pieces(host(directories=own), USER, apart=[path])


@pytest.mark.parametrize(
    ("mode", "uid", "seen"),
    [
        (0o755, 0, (0o555, -1, -1)),
        (0o1777, 0, (0o1777, -1, -1)),
        (0o700, 0, (0o000, -1, -1)),
        (0o750, 1000, (0o750, -1, -1)),
        (0o775, 0, (0o575, -1, -1)),
    ],
)
def test_stand_ins_give_no_rights(mode: int, uid: int, seen: tuple[int, int, int]) -> None:
    """Who can't give away a directory has in its stand-in the rights that it had before."""
    entry = Entry("x", "dir", mode, uid, uid)
    found = USER.seen(entry)
    assert found[1:] == seen[1:]
    assert found[0] >> 6 & 7 == seen[0] >> 6 & 7
    assert ROOT.seen(entry) == (mode, uid, uid)


def test_hidden_directory_in_an_overlay() -> None:
    """It is masked; what comes back in it gets an overlay; one that is a piece is dropped."""
    path, back = "/home/me", "/home/me/suite"
    chain = {one: directory("x") for one in ("/home", path, back)}
    tree = host(directories=chain)
    layout = overlay.lay_out(tree, ROOT, NOTHING, [])
    hidden = hide.Hidden((path, "/usr"), frozenset(), (back,), (), ("/tmp",))
    masks = hide.apply(layout, hidden, tree, ROOT)
    assert [(entry[0], entry[1]) for entry in masks.entries["/home"]] == [
        ("/home", "dir"),
        (path, "opaque"),
        (back, "dir"),
    ]
    found = {piece.path: piece.why for piece in layout.pieces}
    assert back in overlays(found)
    assert "/usr" not in found


def test_place_for_what_stays_writable() -> None:
    """In what is made anew there has to be something to mount on; elsewhere it is there."""
    socket = Entry("sock", "other", 0o666, 0, 0)
    chain = {"/mnt": directory("mnt"), "/mnt/a": directory("a"), "/mnt/sock": socket}
    tree = host({"/mnt/disk": EXT4}, {"/mnt": (directory("disk"), socket)}, chain)
    layout = overlay.lay_out(tree, ROOT, NOTHING, [])
    for path in ("/mnt/sock", "/mnt/a", "/usr/lib", "/mnt/disk/x"):
        overlay.add_place(path, tree, ROOT, layout)
    kinds = {entry[0]: entry[1] for entry in layout.entries}
    assert kinds["/mnt/sock"] == "file"
    assert kinds["/mnt/a"] == "dir"
    assert not {"/usr/lib", "/mnt/disk/x"} & set(kinds)
    assert len(kinds) == len(layout.entries), "each is made once"


def test_mount_below_dev_shm() -> None:
    """What lies among the devices can't be made anew with the root: it is an overlay of its own."""
    listing = (directory("home"), directory("other"))
    chain = {"/dev": directory("dev"), "/dev/shm": directory("shm", 0o1777)}
    tree = host({"/dev/shm/home": EXT4}, {"/dev/shm": listing}, chain)
    covered = Covered(("/dev/shm",), ("/dev/shm/home",))
    layout = overlay.lay_out(tree, ROOT, covered, [])
    found = {piece.path: piece.why for piece in layout.pieces}
    assert {"/dev/shm", "/dev/shm/home"} <= overlays(found)
    assert [entry[0] for entry in layout.made["/dev/shm"]] == ["/dev/shm", "/dev/shm/home"]
    assert "/dev/shm" not in pieces(tree, covered=Covered(("/dev/shm",)))


def test_home_in_dev_shm_with_a_mount_in_it() -> None:
    """It is no overlay, though it is apart: there are those of its parts."""
    home, suite = "/dev/shm/home", "/dev/shm/home/suite"
    chain = {
        "/dev": directory("dev"),
        "/dev/shm": directory("shm", 0o1777),
        home: directory("home", uid=1000),
        suite: directory("suite", uid=1000),
    }
    listings = {"/dev/shm": (directory("home"),), home: (directory("suite"), directory("src"))}
    tree = host({suite: EXT4}, listings, chain)
    found = pieces(tree, USER._replace(unsure=True), Covered(("/dev/shm",), (home,)), [home])
    assert {suite, home + "/src"} <= overlays(found)
    assert home not in found


def test_long_list_of_a_private_directory() -> None:
    """What is brought back in it is known without the list."""
    tree = host({"/tmp/env": EXT4}, {"/tmp": None}, {"/tmp/env": directory("env")})
    found = pieces(tree, covered=Covered(("/tmp",), ("/tmp/env",)))
    assert "/tmp/env" in overlays(found)
    assert "/tmp" not in found


def test_private_directory_of_somebody_else() -> None:
    """/var/tmp is apart from /var for who can't copy it; what the user owns in it is then safe."""
    chain = {"/var": directory("var"), "/var/tmp": directory("tmp", 0o1777)}
    tree = host(None, {"/": (*USUAL, directory("var"))}, chain)
    covered = Covered(("/var/tmp",), ("/var/tmp/suite",))
    assert "/var/tmp" in overlays(pieces(tree, USER, covered))
    assert "/var/tmp" not in pieces(tree, ROOT, covered)


def test_unsure_owner() -> None:
    """Who has the id that unknown owners seem to have can't tell its own directories."""
    path = "/home/me"
    chain = {"/home": directory("home", uid=1000), path: directory("me", uid=1000)}
    assert path not in pieces(host(directories=chain), USER, apart=[path])
    assert path in overlays(
        pieces(host(directories=chain), USER._replace(unsure=True), apart=[path])
    )


def test_rights_of_further_groups() -> None:
    entry = Entry("x", "dir", 0o770, 0, 50)
    assert USER.seen(entry)[0] >> 6 == 0
    assert USER._replace(groups=(50,)).seen(entry)[0] >> 6 == 7


def test_stand_ins_are_put_above_their_overlay() -> None:
    """With the directories on the way; none in what stays writable or is bound."""
    chain = {"/home": directory("home"), "/home/me": directory("me", uid=1000)}
    tree = host({"/home/me/net": Mounted("nfs4", 0)}, directories=chain)
    layout = overlay.lay_out(host(directories=chain), USER, NOTHING, [])
    layout.pieces.append(overlay.Piece("/home/me/net", "may hang", 0, -1, -1, 0))
    layout.pieces.sort()
    found: dict[str, tuple[str, str, int, int, int, str]] = {
        path: (path, kind, 0o644, -1, -1, "")
        for path, kind in (
            ("/home/me/a", "dir"),
            ("/home/me/a/b", "copy"),
            ("/home/me/net/c", "copy"),
            ("/home/me/rw/d", "copy"),
        )
    }
    foreign_owners.add(found, tree, USER, layout, ["/home/me/rw"])
    (top,) = layout.masks
    assert top == "/home"
    assert [entry[:2] for entry in layout.masks[top]] == [
        ("/home", "dir"),
        ("/home/me", "dir"),
        ("/home/me/a", "dir"),
        ("/home/me/a/b", "copy"),
    ]


def test_ancestors() -> None:
    assert ancestors("/a/b/c") == ["/", "/a", "/a/b"]
    assert ancestors("/") == []


def test_mounts_by_path() -> None:
    """The last mount of a path counts."""
    mounts = mountinfo.parse(
        "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /a ro,nosuid,nodev,noexec - tmpfs none rw\n"
        "4 1 0:7 / / rw - overlay none rw\n"
    )
    assert by_path(mounts) == {
        "/": Mounted("overlay", 0),
        "/a": Mounted("tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC),
    }
