"""Many clients of a server, from a process of their own.

  python tests/engines/load_clients.py URL CLIENTS REQUESTS N TOKENS

Each client asks REQUESTS times, one after another, for N completions of
TOKENS tokens. Prints a line of JSON: how often each status came, tokens a
second, the seconds that each client took, and what refusals said.
"""

import asyncio
import collections
import json
import sys
import time

import httpx2


async def _client(http, index, requests, n, tokens):
  codes, refused, sampled = [], [], 0
  started = time.monotonic()
  for i in range(requests):
    response = await http.post(
        "/v1/completions",
        json={
            "prompt": f"Client {index} asks for the {i}th time:",
            "max_tokens": tokens, "n": n, "seed": index,
        },
    )  # fmt: skip
    codes.append(response.status_code)
    if response.status_code == 200:
      sampled += response.json()["usage"]["completion_tokens"]
    else:
      retry = response.headers.get("retry-after")
      refused.append([response.json()["error"]["type"], retry])
  return codes, refused, sampled, time.monotonic() - started


async def main(url, clients, requests, n, tokens):
  limits = httpx2.Limits(max_connections=None)
  async with httpx2.AsyncClient(
    base_url=url, timeout=600, limits=limits
  ) as http:
    started = time.monotonic()
    found = await asyncio.gather(
      *(_client(http, i, requests, n, tokens) for i in range(clients))
    )
    seconds = time.monotonic() - started
  print(
    json.dumps(
      {
        "codes": collections.Counter(c for f in found for c in f[0]),
        "refused": [r for f in found for r in f[1]],
        "tokens_per_second": sum(f[2] for f in found) / seconds,
        "seconds": [f[3] for f in found],
      }
    )
  )


if __name__ == "__main__":
  asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
