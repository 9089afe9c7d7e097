"""A folder as a bucket of Google Cloud Storage, to read only.

The part of its JSON API with which gcsfs and TensorStore list and read.
"""

import contextlib
import http.server
import json
import pathlib
import threading
import urllib.parse


@contextlib.contextmanager
def served(folder, name='bucket'):
  """The address of a server; 'forbidden' is a bucket that nobody may read."""
  handler = type('Here', (_Handler,), dict(folder=folder, bucket=name))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
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
    elif bucket != self.bucket or 'o' not in parts:
      self._say(404, {'error': {'code': 404, 'message': 'not there'}})
    elif parts[-1] == 'o':
      self._say(200, self._list(query))
    else:
      self._object('/'.join(parts[parts.index('o') + 1 :]), query)

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
