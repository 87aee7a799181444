"""Names of masks and maps: plain ones are taken, others are refused with what to do."""

from __future__ import annotations

import pytest

from wsipipe.errors import ConfigError
from wsipipe.store import SlideStore
from wsipipe.store.names import check_name


@pytest.mark.parametrize("name", ["camel", "a", "9", "UNet_v2.1-x"])
def test_plain_names_are_accepted(store: SlideStore, name: str) -> None:
    check_name(name)
    store.write_labels(name, {0: "none"}, {}, [])
    assert sorted(SlideStore(store.path).names("labels")) == sorted([name, "tissue"])


@pytest.mark.parametrize("name", ["tissue", "tile", "zarr.json"])
def test_names_that_wsipipe_uses_itself_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="reserved by wsipipe; choose another --name"):
        check_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", ".a", "_a", "-a", "a b", "é", "a\n", "a:b"])
def test_names_that_could_leave_the_store_or_hide_are_refused(store: SlideStore, name: str) -> None:
    with pytest.raises(ConfigError, match=r"use letters, digits, '\.', '_' and '-', starting with a letter or digit"):
        check_name(name)
    before = sorted(store.path.parent.rglob("*"))
    with pytest.raises(ConfigError):
        store.write_labels(name, {0: "none"}, {}, [])
    assert sorted(store.path.parent.rglob("*")) == before
