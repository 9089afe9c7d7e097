"""The JobSet for GKE, and kubectl's answers explained."""

import pathlib
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [
  '--name=moe',
  '--image=europe-docker.pkg.dev/p/r/moe:1',
  '--type=v5e',
  '--topology=4x8',
  '--config=configs/digits_moe.py',
  '--workdir=/mnt/share/a run',
]
KUBECTL = """#!/bin/sh
echo "$*" > {calls}
cat > {manifest}
echo 'jobset.jobset.x-k8s.io/moe created'
"""


def run(*arguments, path='/nowhere'):
  return subprocess.run(
    [sys.executable, ROOT / 'launch/gke.py', *arguments],
    capture_output=True,
    text=True,
    env={'PATH': path},
    check=False,
  )


def refused(*arguments, **options):
  done = run(*arguments, **options)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  return done.stderr


def rendered(*arguments):
  """The JobSet, and its only container, of a dry run without kubectl."""
  done = run('--dry-run', *FLAGS, *arguments)
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith('\n# kubectl apply --filename=-\n')
  jobset = yaml.safe_load(done.stdout)
  [slices] = jobset['spec']['replicatedJobs']
  pod = slices['template']['spec']['template']['spec']
  [container] = pod['containers']
  return jobset, slices, pod, container


def test_the_fields_that_jobset_and_tpus_need():
  jobset, slices, pod, container = rendered()
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert (jobset['kind'], jobset['metadata']['name']) == ('JobSet', 'moe')
  assert jobset['metadata']['annotations'] == {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': (
      'cloud.google.com/gke-nodepool'
    )
  }
  job = slices['template']['spec']
  assert slices['replicas'] == 1
  assert (job['parallelism'], job['completions']) == (8, 8)
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x8',
  }
  assert container['image'] == 'europe-docker.pkg.dev/p/r/moe:1'
  chips = {'google.com/tpu': 4}
  assert container['resources'] == {'requests': chips, 'limits': chips}
  [volume], [mounted] = pod['volumes'], container['volumeMounts']
  assert volume['name'] == mounted['name']
  assert mounted['mountPath'] == '/mnt/share'
  claim = yaml.safe_load((ROOT / 'launch/gke_share.yaml').read_text())
  named = volume['persistentVolumeClaim']['claimName']
  assert named == claim['metadata']['name']
  assert claim['spec']['accessModes'] == ['ReadWriteMany']


def test_machines_taken_away_start_again_without_end():
  jobset, slices, pod, container = rendered('--spot', '--slices=2')
  assert slices['replicas'] == 2
  assert pod['nodeSelector']['cloud.google.com/gke-spot'] == 'true'
  [toleration] = pod['tolerations']
  assert toleration['key'] == 'cloud.google.com/gke-spot'
  assert toleration['value'] == 'true'
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] > 0
  [rule] = policy['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  rules = slices['template']['spec']['podFailurePolicy']['rules']
  taken, stopped = rules
  assert {r['action'] for r in rules} == {'FailJob'}
  [condition] = taken['onPodConditions']
  assert condition == {'type': 'DisruptionTarget', 'status': 'True'}
  codes = stopped['onExitCodes']
  assert codes['values'] == [80, 81] and codes['operator'] == 'In'
  assert codes['containerName'] == container['name']
  # Kubernetes allows the policy with this alone.
  assert pod['restartPolicy'] == 'Never'


def test_the_command_is_the_worker_with_the_words_as_given():
  theirs = ['--config.data.dir=/mnt/share/"t: f"', '--config.x=$(HOST) é #']
  container = rendered('--', *theirs)[-1]
  bash, script, name = container['command']
  assert (ROOT / script).is_file() and bash == 'bash'
  variables = {variable['name'] for variable in container['env']}
  assert name == '$(SLICE)-$(HOST)' and variables == {'SLICE', 'HOST'}
  # Kubernetes makes $( of $$(, and would make a host's number of $(HOST).
  kept = [word.replace('$(', '$$(') for word in theirs]
  assert container['args'] == ['/mnt/share/a run', FLAGS[4], *kept]


@pytest.mark.parametrize(
  ('type', 'topology', 'hosts', 'chips'),
  [
    ('v4', '2x2x1', 1, 4),
    ('v4', '2x2x4', 4, 4),
    ('v5e', '1x1', 1, 1),
    ('v5e', '2x4', 1, 8),
    ('v5e', '4x4', 4, 4),
    ('v5p', '4x4x4', 16, 4),
    ('v6e', '16x16', 64, 4),
  ],
)
def test_machines_of_a_slice(type, topology, hosts, chips):
  _, slices, pod, container = rendered(
    f'--type={type}', f'--topology={topology}'
  )
  assert slices['template']['spec']['completions'] == hosts
  assert container['resources']['limits']['google.com/tpu'] == chips
  accelerator = pod['nodeSelector']['cloud.google.com/gke-tpu-accelerator']
  assert type in accelerator.replace('v5-lite', 'v5e')


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ('--topology=4x4x4', ['--topology=4x4x4', '--type=v5e', '4x4']),
    ('--topology=16', ['--topology=16']),
    ('--topology=3x3', ['no slice of --type=v5e; use one of 1x1, 2x2']),
    ('--topology=4x2', ['use one of']),
    ('--type=v4 --topology=2x4x2', ['as in 2x4x4']),
    ('--type=v5p --topology=2x2x6', ['as in 2x4x4']),
    ('--type=v7', ['v7', 'v6e']),
    ('--name=Moe', ['a-z']),
    (f'--name={64 * "a"}', ['40 of them at most']),
    ('--type=v5p --topology=0x0x0', ['a side of 0']),
    ('--image=', ['--image is empty']),
    ('--claim=', ['--claim is empty']),
    ('--workdir=/mnt/share/../x', ['not in the shared folder']),
    ('--config=configs/experiments/digits_paper.py', ['of many runs']),
    ('-- --workdir=/tmp/q', ['give --workdir before it']),
    ('--slices=0', ['1 or more']),
    ('--workdir=gs://b/moe', ['not in a bucket']),
    ('--config=nowhere.py', ['nowhere.py', 'configs/']),
  ],
)
def test_a_command_line_that_cannot_work(changed, words):
  message = refused(*FLAGS, '--dry-run', *changed.split())
  for word in words:
    assert word in message


def test_machines_get_the_config_by_its_place_in_the_tree():
  flags = [flag for flag in FLAGS if not flag.startswith('--config=')]
  there = ROOT / 'configs/moe_b16.py'
  text = run('--dry-run', *flags, f'--config={there}').stdout
  assert '"--config=configs/moe_b16.py"' in text and str(ROOT) not in text


def test_apply_gives_kubectl_what_the_dry_run_prints(tool, tmp_path):
  calls, manifest = tmp_path / 'calls', tmp_path / 'manifest'
  tool('kubectl', KUBECTL.format(calls=calls, manifest=manifest))
  done = run(*FLAGS, path=str(tmp_path / 'bin'))
  assert done.returncode == 0, done.stderr
  assert calls.read_text() == 'apply --filename=-\n'
  assert manifest.read_text() in run('--dry-run', *FLAGS).stdout
  assert 'created' in done.stdout
  assert 'kubectl delete jobset moe' in done.stdout


@pytest.mark.parametrize(
  ('said', 'words'),
  [
    (
      'error: resource mapping not found for name: "moe": no matches for kind '
      '"JobSet" in version "jobset.x-k8s.io/v1alpha2"',
      ['no JobSet', 'installation'],
    ),
    (
      'The connection to the server localhost:8080 was refused',
      ['get-credentials'],
    ),
    ('error: You must be logged in to the server', ['gcloud auth login']),
    (
      'Error from server (Forbidden): jobsets is forbidden: exceeded quota',
      ['quota'],
    ),
    ('The JobSet "moe" is invalid: field is immutable', ['kubectl delete']),
  ],
)
def test_what_kubectl_says_is_explained(tool, tmp_path, said, words):
  tool('kubectl', f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
  message = refused(*FLAGS, path=str(tmp_path / 'bin'))
  for word in (*words, said):
    assert word in message


def test_without_kubectl():
  assert 'kubectl is not installed' in refused(*FLAGS)


def test_each_index_of_a_job_runs_its_part(tmp_path):
  job = yaml.safe_load((ROOT / 'launch/gke_parts.yaml').read_text())
  spec, pod = job['spec'], job['spec']['template']['spec']
  assert (job['apiVersion'], job['kind']) == ('batch/v1', 'Job')
  assert spec['completionMode'] == 'Indexed'
  # These two go together, and with restartPolicy Never alone.
  assert spec['maxFailedIndexes'] <= spec['completions']
  assert spec['backoffLimitPerIndex'] and 'backoffLimit' not in spec
  assert pod['restartPolicy'] == 'Never'
  claim = yaml.safe_load((ROOT / 'launch/gke_share.yaml').read_text())
  named = pod['volumes'][0]['persistentVolumeClaim']['claimName']
  assert named == claim['metadata']['name']
  [container] = pod['containers']
  # Kubernetes would replace $(NAME).
  assert not [word for word in container['command'] if '$(' in word]
  (tmp_path / 'python').write_text('#!/bin/sh\necho "$*"\n')
  (tmp_path / 'python').chmod(0o755)
  done = subprocess.run(
    [*container['command'], *container['args']],
    env={'PATH': f'{tmp_path}:/bin:/usr/bin', 'FIRST': '15'}
    | {'JOB_COMPLETION_INDEX': '2'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == [
    *('-m', 'vmoe_robust.experiment', '--only=17'),
    *container['args'],
  ]
