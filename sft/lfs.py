"""Git LFS: does a file hold only the pointer to its content? For every reader of files that repositories keep so."""

LFS_BEGINNINGS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
LFS_WAY_OUT = "expected the file itself: run `git lfs pull` in its repository, or download it again"


def is_lfs_pointer(data: bytes) -> bool:
    """Say whether a file's first bytes are those of a Git LFS pointer, which stands where a file was not fetched."""
    return data.startswith(LFS_BEGINNINGS)
