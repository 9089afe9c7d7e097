"""A folder as a bucket of Google Cloud Storage.

The part of its JSON API with which gcsfs and TensorStore list, read and write.
"""

import contextlib
import email
import http.server
import json
import pathlib
import threading
import urllib.parse

import pytest
from etils.epath import backend


@contextlib.contextmanager
def served(folder, name='bucket'):
  """The address of a server; 'forbidden' is a bucket that nobody may read."""
  handler = type('Here', (_Handler,), dict(folder=folder, bucket=name))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  server.daemon_threads = True
  server.handle_error = lambda *_: None  # a client that was killed
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def reached(folder):
  """The same, for gcsfs and TensorStore of this process and its children."""
  gcsfs = pytest.importorskip('gcsfs', reason='gcsfs is not installed')

  def forget():
    gcsfs.GCSFileSystem.clear_instance_cache()
    backend.fsspec_backend._get_filesystem.cache_clear()

  with served(folder) as address, pytest.MonkeyPatch.context() as patch:
    patch.setenv('STORAGE_EMULATOR_HOST', address)
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
    patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'a token')
    # Else gcsfs asks Google itself what kind of bucket it is.
    patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    forget()
    yield folder
  forget()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True  # else each answer waits for 40 ms
  folder, bucket = pathlib.Path(), ''

  def log_message(self, *_):
    pass

  def do_GET(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    parts = [urllib.parse.unquote(p) for p in url.path.split('/')]
    bucket = parts[parts.index('b') + 1] if 'b' in parts else ''
    if bucket == 'forbidden':
      self._say(403, {'error': {'code': 403, 'message': 'not for you'}})
    elif bucket == parts[-1] == self.bucket:
      self._say(200, {'kind': 'storage#bucket', 'name': bucket})
    elif bucket != self.bucket or 'o' not in parts:
      self._say(404, {'error': {'code': 404, 'message': 'not there'}})
    elif parts[-1] == 'o':
      self._say(200, self._list(query))
    else:
      self._object('/'.join(parts[parts.index('o') + 1 :]), query)

  def do_POST(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    data = self.rfile.read(int(self.headers['Content-Length']))
    parts = [urllib.parse.unquote(p) for p in url.path.split('/')]
    if 'rewriteTo' in parts:
      at = parts.index('rewriteTo')
      data = (self.folder / parts[at - 1]).read_bytes()
      self._write(parts[-1], data, done=True)
    elif query.get('uploadType') == 'resumable':
      place = f'http://{self.headers["Host"]}{url.path}?name={query["name"]}'
      self._send(200, b'', {'Location': place})
    elif query.get('uploadType') == 'multipart':
      head = f'Content-Type: {self.headers["Content-Type"]}\n\n'.encode()
      about, content = email.message_from_bytes(head + data).get_payload()
      name = json.loads(about.get_payload())['name']
      self._write(name, content.get_payload(decode=True))
    else:
      self._write(query['name'], data)

  def do_PUT(self):
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
    (name,) = query['name']
    data = self.rfile.read(int(self.headers['Content-Length']))
    self._write(name, data)

  def do_DELETE(self):
    parts = urllib.parse.urlsplit(self.path).path.split('/')
    path = self.folder / urllib.parse.unquote(parts[-1])
    if not path.is_file():
      return self._say(404, {'error': {'code': 404, 'message': 'not there'}})
    path.unlink()
    self._send(204, b'', {})

  def _write(self, name, data, done=None):
    if name.endswith('/'):
      return self._say(200, {'name': name})
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    about = self._about(name)
    self._say(200, about if done is None else {'done': done, 'resource': about})

  def _object(self, name, query):
    path = self.folder / name
    if not name or not path.is_file():
      self._say(404, {'error': {'code': 404, 'message': 'not there'}})
    elif query.get('alt') == 'media':
      self._media(path.read_bytes())
    else:
      self._say(200, self._about(name))

  def _media(self, data):
    first, last, code, headers = 0, len(data) - 1, 200, {}
    asked = self.headers.get('Range')
    if asked:
      first, last = asked.removeprefix('bytes=').split('-')
      if first:
        first, last = int(first), min(int(last or len(data)), len(data) - 1)
      else:
        first, last = max(len(data) - int(last), 0), len(data) - 1
      code = 206
      headers['Content-Range'] = f'bytes {first}-{last}/{len(data)}'
      if first > last:
        code, headers = 416, {}
    headers['x-goog-generation'] = '1'
    self._send(code, data[first : last + 1], headers)

  def _about(self, name):
    size = (self.folder / name).stat().st_size
    when = '2026-01-01T00:00:00.000Z'
    return {
      **dict(kind='storage#object', bucket=self.bucket, name=name),
      **dict(size=str(size), generation='1', timeCreated=when, updated=when),
    }

  def _list(self, query):
    prefix, cut = query.get('prefix', ''), query.get('delimiter')
    files = (p for p in self.folder.rglob('*') if p.is_file())
    items, folders = [], set()
    for name in sorted(p.relative_to(self.folder).as_posix() for p in files):
      if not name.startswith(prefix):
        continue
      rest = name[len(prefix) :]
      if cut and cut in rest:
        folders.add(prefix + rest.split(cut)[0] + cut)
      else:
        items.append(self._about(name))
    return {'items': items, 'prefixes': sorted(folders)}

  def _say(self, code, values):
    self._send(code, json.dumps(values).encode(), {})

  def _send(self, code, data, headers):
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    # gcsfs asks twice at once, and hangs up when it has one answer.
    with contextlib.suppress(ConnectionError):
      self.wfile.write(data)
