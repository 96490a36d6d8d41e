"""Texts of a kit besides keys and settings: comments, start script, systemd unit, compose file, nginx.conf."""

from __future__ import annotations

SERVER_TOML = """\
# The server of an Umbel federation: umbel server start THIS-FOLDER
# host and public_port: what clients reach, and the certificate is for. port: of the SuperLink, on loopback alone;
# nginx.conf publishes what clients need of it. store: sqlite:///FILE.db, relative to this folder, or postgresql://…
# token_sha256: of the token in the operator's kit. clients/: one public node key per client that may connect.
"""

CLIENT_TOML = """\
# A client of an Umbel federation: umbel client start THIS-FOLDER --data SOURCE
# number and clients: this client's place among how many. server: host and port, by TLS alone.
# What this client agrees to is in policy.toml.
"""

OPERATOR_TOML = """\
# The operator of an Umbel federation: umbel run EXPERIMENT --runtime flower --federation THIS-FOLDER
# address: of the SuperLink, on the server's host or at the end of an SSH tunnel. store: the server's, as reached from
# here. timeout_seconds: a round's deadline; who has not answered by then is left out of it. quorum: fewest clients that
# have to be connected for a round to begin (1). ca.key, operator.jwk and control.token are the federation: keep a copy
# off line, and show them to nobody.
"""

POLICY_TOML = """\
# What this client agrees to. It refuses everything else, and tells the operator why. Nobody but you changes this file.

[data]
# source = "/data/patients.npz"   # where this client's examples are; the option --data takes precedence

[experiments]
# Names, as of `umbel experiments` or of files in the folder experiments/; "*" for all that are installed here.
# No code ever comes from the server.
allow = ["*"]
# What a server may change of them. By default rounds, sizes and rates; never files, the plan or the aggregation:
# overrides = ["rounds", "local.epochs", "local.learning_rate"]
# To allow one experiment as it is today, and no variation of it, give its digest: umbel client digest EXPERIMENT
# [experiments.digests]
# digits_fedavg = "…"

[limits]
max_rounds = 10000                  # of all runs of an experiment together: umbel client budget KIT
max_epochs = 100
max_parameters = 1000000000

[privacy]
# With any bound here, an experiment without differential privacy is refused.
# max_epsilon = 8.0                 # of all runs of an experiment together, by this client's own account
# max_delta = 1e-5
# min_noise_multiplier = 0.5
# require_secure_aggregation = true # the server must see sums only
"""

# What a node with a registered key calls: it neither registers nor unregisters itself.
FLEET = "|".join(
    (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)

HARDENING = """\
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictSUIDSGID=yes
LockPersonality=yes
UMask=0077
"""


def start_script(party: str) -> str:
    """Return start.sh: the party in the foreground, from wherever the kit lies."""
    return f"""\
#!/bin/sh
# Starts this {party} in the foreground; SIGTERM or Ctrl-C ends it. More options are passed on.
exec umbel {party} start "$(dirname -- "$0")" "$@"
"""


def systemd_unit(party: str) -> str:
    """Return umbel-PARTY.service, for a kit in /etc/umbel/PARTY and Umbel in /opt/umbel."""
    # A client may need its graphics card.
    hardening = HARDENING.replace("PrivateDevices=yes\n", "") if party == "client" else HARDENING
    return f"""\
# The kit lies in /etc/umbel/{party} and belongs to the user umbel; Umbel is installed in /opt/umbel.
#   cp umbel-{party}.service /etc/systemd/system/ && systemctl enable --now umbel-{party}
[Unit]
Description=Umbel {party}
Wants=network-online.target
After=network-online.target

[Service]
User=umbel
ExecStart=/opt/umbel/bin/umbel {party} start /etc/umbel/{party}
KillMode=mixed
TimeoutStopSec=30
Restart=on-failure
RestartSec=10
ReadWritePaths=/etc/umbel/{party}/state
{hardening}
[Install]
WantedBy=multi-user.target
"""


def compose(party: str, public_port: int) -> str:
    """Return compose.yaml, for an image that has Umbel; the server's proxy shares its network, so its loopback too."""
    ports = f"    ports: ['{public_port}:{public_port}']\n" if party == "server" else ""
    proxy = (
        """\
  proxy:
    image: ${UMBEL_PROXY_IMAGE:-nginx:stable}
    command: [nginx, -c, /kit/nginx.conf, -p, /kit/state, -g, "daemon off;"]
    network_mode: service:server
    restart: unless-stopped
    read_only: true
    security_opt: ["no-new-privileges:true"]
    volumes: [".:/kit:ro", "./state:/kit/state"]
    depends_on: [server]
"""
        if party == "server"
        else ""
    )
    data = "" if party == "server" else '    environment: {UMBEL_CLIENT_DATA: "${UMBEL_CLIENT_DATA:-}"}\n'
    return f"""\
# docker compose up -d, in this folder, which belongs to the user 10001 of the image.
services:
  {party}:
    image: ${{UMBEL_IMAGE:-umbel:latest}}
    command: [umbel, {party}, start, /kit]
    user: "10001:10001"
{ports}{data}    restart: unless-stopped
    stop_grace_period: 30s
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    tmpfs: [/tmp]
    volumes: [".:/kit:ro", "./state:/kit/state"]
{proxy}"""


NGINX = """\
# nginx -c KIT/nginx.conf -p KIT/state
# Certificates are looked for beside this file; the log goes into the prefix, state. Bodies are passed on as they come,
# and never written to disk: workers of an nginx that root started could not write into another user's folder.
worker_processes auto;
pid nginx.pid;
error_log nginx-error.log warn;

events {{ worker_connections 4096; }}

http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  client_body_temp_path nginx-bodies;
  proxy_temp_path nginx-replies;
  fastcgi_temp_path nginx-unused; scgi_temp_path nginx-unused; uwsgi_temp_path nginx-unused;

  limit_req_zone $binary_remote_addr zone=rate:10m rate=200r/s;
  limit_conn_zone $binary_remote_addr zone=connections:10m;
  limit_req_status 429;
  limit_conn_status 429;

  upstream superlink {{ server 127.0.0.1:{port}; keepalive 64; }}

  server {{
    listen {listened} ssl;{both}
    server_name {name};
    ssl_certificate server.crt;
    ssl_certificate_key server.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:10m;
    ssl_session_tickets off;

    client_max_body_size 8m;
    client_body_buffer_size 256k;
    client_header_timeout 10s;
    client_body_timeout 10s;
    send_timeout 30s;
    keepalive_timeout 75s;
    large_client_header_buffers 4 8k;
    limit_conn connections 64;

    location ~ ^/v1/fleet/({fleet})$ {{
      limit_except POST {{ deny all; }}
      limit_req zone=rate burst=400 nodelay;
      proxy_pass https://superlink;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_ssl_trusted_certificate ca.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_connect_timeout 5s;
      proxy_read_timeout 60s;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
    }}

    # A connection that a client keeps open for the steps of split learning; both ends are heard every 20 seconds.
    location = /v1/fleet/umbel-steps {{
      limit_except GET {{ deny all; }}
      limit_req zone=rate burst=400 nodelay;
      proxy_pass https://superlink;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header Host $host;
      proxy_ssl_trusted_certificate ca.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_ssl_server_name on;
      proxy_connect_timeout 5s;
      proxy_read_timeout 60s;
      proxy_send_timeout 60s;
      proxy_buffering off;
    }}

    location = /health {{
      limit_except GET {{ deny all; }}
      limit_req zone=rate burst=20 nodelay;
      proxy_pass https://superlink;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_ssl_trusted_certificate ca.crt;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
    }}

    location / {{ return 404; }}
  }}
}}
"""


def nginx(host: str, public_port: int, port: int) -> str:
    """Return nginx.conf, which publishes what a node with a key needs of the SuperLink, and nothing else.

    Bodies: Flower cuts arrays into chunks of 5 MiB. Rates: an idle node asks for work 20 times a second, and several
    may share an address. A slow connection holds one of its address's 32; 10 seconds of silence end it.
    """
    name = f"[{host}]" if ":" in host else host
    if ":" in host:
        listened, both = f"[::]:{public_port} ipv6only=off", ""
    else:  # not unasked: where a host has no IPv6, nginx would not start
        listened, both = str(public_port), f"\n    # listen [::]:{public_port} ssl;  # for clients that have IPv6 alone"
    return NGINX.format(name=name, listened=listened, both=both, port=port, fleet=FLEET)
