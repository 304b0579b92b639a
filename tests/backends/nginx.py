"""nginx as a backend: one process, no master, everything it writes in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tests.backends.process import LOOPBACK, Foreground
from tests.lab import Namespace

TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

CONFIG = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {temporary}
    keepalive_requests 100000000;
    keepalive_timeout 30s;
    client_max_body_size 1m;
    default_type application/octet-stream;
    server {{
        listen {listen} backlog=1024;
        root {folder}/www;
        location = / {{ return 200 "nginx\\n"; }}
        location = /name {{ default_type text/plain; return 200 "{name}"; }}
        location = /who {{
            default_type text/plain;
            return 200 "$http_x_metashim_instance $http_x_metashim_project $request_method $request_uri";
        }}
        location = /empty {{ return 200; }}
        location = /nothing {{ return 204; }}
        location = /status/401 {{ return 401 "no"; }}
        location = /status/429 {{ add_header Retry-After 7 always; return 429 "slower"; }}
        location = /zipped {{ default_type text/plain; gzip on; gzip_types text/plain; try_files /text =404; }}
        location = /slow {{ limit_rate 20k; try_files /file =404; }}
    }}
}}
"""


class Nginx(Foreground):
    """It serves the files of `www`, and the paths of CONFIG; `name` tells one from another (`/name`).

    `/who` echoes the default identity headers of a generic HTTP backend, the method and the target; `/zipped` is the
    file `text`, compressed as it is sent (chunked); `/slow` the file `file`, at 20 KiB/s.
    """

    def __init__(
        self, namespace: Namespace | None = None, name: str = "nginx", *, host: str = LOOPBACK, unix: bool = False
    ) -> None:
        super().__init__(namespace, host=host, unix=unix)
        self.name = name
        self.www = self.folder / "www"
        self.www.mkdir()
        temporary = " ".join(f"{kind}_temp_path {self.folder}/{kind};" for kind in TEMPORARY)
        listen = f"unix:{self.path}" if self.path else self.url.removeprefix("http://")
        config = CONFIG.format(folder=self.folder, temporary=temporary, listen=listen, name=name)
        (self.folder / "nginx.conf").write_text(config)

    @property
    def argv(self) -> Sequence[str]:
        return ["/usr/sbin/nginx", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]
