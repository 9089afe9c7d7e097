"""Reading from a bucket, of a server that answers as Google's does."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint.bucket import reached
from vmoe_robust import checkpoint
from vmoe_robust import config as config_lib
from vmoe_robust.checkpoint.verify import verify
from vmoe_robust.config import UserError
from vmoe_robust.report.records import write_records
from vmoe_robust.report.results import FORMAT, VERSION, read_results


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bucket')
  config, run = config_lib.default(), folder / 'run'
  checkpoints = checkpoint.Checkpoints(run, config.save)
  trees = {'params': {'w': jnp.arange(3.0)}, 'rest': {'step': jnp.int32(1)}}
  checkpoints.save(1, trees, {})
  checkpoints.close()
  checkpoint.save_config(run, config)
  write_records(run / 'records.parquet', dict(index=np.arange(3)))
  parts = ('asked', 'weights', 'data', 'summary')
  found = {'format': FORMAT, 'format_version': VERSION}
  found |= {name: {} for name in parts}
  found |= dict(rows=[], warnings=[])
  found['files'] = {'records': {'name': 'records.parquet', 'rows': 3}}
  (run / 'results.json').write_text(json.dumps(found))
  return folder


@pytest.fixture
def bucket(folder):
  with reached(folder):
    yield folder


def test_results(bucket):
  for name in ('run', 'run/results.json'):
    found, here = (
      read_results(f'gs://bucket/{name}'),
      read_results(bucket / name),
    )
    assert found == here
    assert found.records.equals(here.records)


@pytest.mark.slow
def test_verify(bucket):
  assert verify('gs://bucket/run') == verify(bucket / 'run')
  seal = bucket / 'run' / 'checkpoints' / '1' / 'extra' / 'metadata'
  whole = seal.read_bytes()
  seal.write_bytes(whole + b' ')
  assert [s.state for s in verify('gs://bucket/run')] == ['good', 'damaged']
  seal.write_bytes(whole)


def test_errors_are_a_line(bucket):
  with pytest.raises(UserError, match='path=.gs://forbidden/run.*: Forbidden'):
    verify('gs://forbidden/run')
  with pytest.raises(UserError, match='gs://other/run has no checkpoints'):
    verify('gs://other/run')
  with pytest.raises(UserError, match='gs:/.*bucket/other.* cannot be read'):
    read_results('gs://bucket/other')


def test_weights(bucket):
  weights = checkpoint.open_weights('gs://bucket/run/checkpoints/1')
  np.testing.assert_array_equal(weights.read('w'), np.arange(3.0))


def test_without_gcsfs(monkeypatch):
  known = sys.modules['fsspec.registry']._registry
  monkeypatch.delitem(known, 'gs', raising=False)
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  for read in (verify, read_results):
    with pytest.raises(UserError, match=r"pip install 'vmoe_robust\[gcs\]'"):
      read('gs://bucket/run')
