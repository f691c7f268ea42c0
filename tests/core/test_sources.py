"""Whether DICOMs are still the ones that were cached."""

from rsna.core.files import ABSENT, content_hash
from rsna.core.sources import INDEX_CSV, SEEN_CSV, changed_source, compare_sources, hash_of


def test_a_table_of_times_that_was_cut_off_is_not_used(tmp_path):
    """As after a power cut: its header names the index, its rows are gone."""
    index = tmp_path / INDEX_CSV
    index.write_text("patientId,split,status,source_hash\na,train,ok,1\nb,train,ok,2\n")
    (tmp_path / SEEN_CSV).write_text(f"{content_hash(index)}\nx;y;\n")
    (tmp_path / "a.dcm").write_text("another")
    assert changed_source(tmp_path, tmp_path, "train") is None
    (tmp_path / SEEN_CSV).write_text(f"{content_hash(index)}\nx;y;\nx;y;\n")
    compare_sources.cache_clear()
    assert changed_source(tmp_path, tmp_path, "train") == tmp_path / "a.dcm"


def test_an_index_without_the_column_split_has_no_rows_of_a_split(tmp_path):
    (tmp_path / INDEX_CSV).write_text("patientId,status\na,ok\n")
    assert hash_of(tmp_path / f"{INDEX_CSV}#train") == ABSENT
