"""What the tau world's tasks are made of: desks, customers, rules, requests.

A task is a function of (split, index); the customer's name decides the split.
The rules of a desk are drawn for each task and stand in its prompt, so they
must be read: which records may be changed, what a refund costs and how late
it comes, what goes to a human, whether the customer has to say yes first.
"""

import dataclasses


from pivotrl_jax.envs import base

FIRST = (
    "Ada", "Amy", "Ben", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo",
    "Ines", "Ivan", "Jack", "Kate", "Lena", "Leo", "Lily", "Mara", "Max",
    "Nina", "Noah", "Olga", "Omar", "Paul", "Rosa", "Sam", "Sara", "Tina",
    "Tom", "Uma", "Vera", "Walt", "Zoe",
)  # fmt: skip
LAST = (
    "Adams", "Baker", "Bell", "Berg", "Blake", "Brown", "Clark", "Cole",
    "Cook", "Cruz", "Diaz", "Ellis", "Evans", "Ford", "Fox", "Gray", "Green",
    "Hall", "Hill", "Hunt", "Jones", "Kelly", "King", "Lane", "Lee", "Long",
    "Lopez", "Marsh", "Mills", "Moore", "Nash", "Owen", "Park", "Perez",
    "Price", "Reed", "Rice", "Ross", "Shaw", "Smith", "Stone", "Todd", "Wade",
    "Ward", "Webb", "West", "Wood", "Young",
)  # fmt: skip
STREETS = ("Oak", "Elm", "Park", "Lake", "Hill", "Mill", "River", "Church")


@dataclasses.dataclass(frozen=True)
class Desk:
  """A line of business.

  Attributes:
    opening: how its prompt begins.
    letter: what its records' ids begin with.
    items: what records are about.
    word: what customers call a record of an item.
    statuses: of records; only those of the first may be changed.
    field: what of a record can be changed.
    values: of the field; "" where they are addresses.
  """

  opening: str
  letter: str
  items: tuple[str, ...]
  word: str
  statuses: tuple[str, ...]
  field: str
  values: tuple[str, ...]


DESKS = {
  "retail": Desk(
    "You serve a shop's customers.", "W",
    ("lamp", "mug", "chair", "desk", "clock", "kettle", "jacket", "camera",
     "radio", "blender", "mirror", "carpet", "tent", "bike", "watch"),
    "order", ("pending", "shipped", "delivered"), "address", (),
  ),
  "airline": Desk(
    "You serve an airline's customers.", "F",
    ("Oslo", "Rome", "Lima", "Cairo", "Delhi", "Paris", "Tokyo", "Dublin",
     "Boston", "Prague", "Vienna", "Madrid", "Athens", "Quito", "Seoul"),
    "flight", ("booked", "boarded", "flown"), "seat",
    tuple(f"{row}{seat}" for row in range(2, 30) for seat in "ABCDEF"),
  ),
  "telecom": Desk(
    "You serve a phone company's customers.", "L",
    ("home", "office", "tablet", "mobile", "car", "alarm", "router", "shop",
     "studio", "garage", "travel", "family", "kids", "boat", "cabin"),
    "line", ("active", "paused", "closed"), "plan",
    ("basic", "plus", "family", "student", "travel", "night", "office",
     "unlimited"),
  ),
}  # fmt: skip
# What customers say -> what an agent may write down as the reason.
REASONS = {
  "I no longer need it.": (
    "no longer needed", "not needed any longer",
    "customer no longer needs it",
  ),
  "I picked the wrong one.": (
    "picked the wrong one", "wrong one picked", "customer picked wrong one",
  ),
  "I found it cheaper.": (
    "found it cheaper", "cheaper one found", "customer found it cheaper",
  ),
  "It costs too much.": (
    "costs too much", "it costs too much", "too much cost",
  ),
}  # fmt: skip
KINDS = ("cancel", "change", "refund", "price", "total")


@dataclasses.dataclass(frozen=True)
class Record:
  """An order, a flight or a line; `owner` is a customer's name."""

  id: str
  owner: str
  item: str
  price: int
  status: str
  days: int
  value: str


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a desk allows today.

  Attributes:
    fee: what a refund is less than the price.
    days: most days after which there is one.
    most: refunds above it go to a human.
    confirm: nothing is done before the customer has said yes.
  """

  fee: int
  days: int
  most: int
  confirm: bool


@dataclasses.dataclass(frozen=True)
class Request:
  """One thing that a customer wants.

  Attributes:
    kind: one of `KINDS`.
    record: id of the record it is about; "" for "total".
    value: what the record's field should become.
    tells: whether the customer says so at once.
    reason: a key of `REASONS`.
    outcome: "do", "refuse", "transfer", or "tell" for a question.
    fact: what the customer must be told; "" where nothing.
  """

  kind: str
  record: str
  value: str
  tells: bool
  reason: str
  outcome: str
  fact: str


@dataclasses.dataclass(frozen=True)
class Task:
  """A customer's visit.

  Attributes:
    id: `tau-DESK-SPLIT-INDEX`.
    desk: a key of `DESKS`.
    rules: in force.
    customer: the name.
    pin: what proves it.
    records: the database: the customer's, and another's.
    requests: one or two, in order.
    introduces: whether the customer begins with name and pin.
    style: of the customer's wording.
  """

  id: str
  desk: str
  rules: Rules
  customer: str
  pin: int
  records: tuple[Record, ...]
  requests: tuple[Request, ...]
  introduces: bool
  style: int


def make_task(index: int, split: str) -> Task:
  """Task `index` of a split, always the same."""
  base.check_split(split)
  rng = base.generator("tau", split, index)
  desk = base.pick(rng, tuple(DESKS))
  customer = _name(rng)
  while base.split_of(customer) != split:
    customer = _name(rng)
  rules = Rules(
    fee=int(rng.integers(2, 10)),
    days=int(rng.integers(2, 7)) * 10,
    most=int(rng.integers(4, 10)) * 10,
    confirm=bool(rng.random() < 0.65),
  )
  records = _records(rng, DESKS[desk], customer, rules)
  return Task(
    id=f"tau-{desk}-{split}-{index}",
    desk=desk,
    rules=rules,
    customer=customer,
    pin=int(rng.integers(1000, 10000)),
    records=records,
    requests=_requests(rng, DESKS[desk], customer, rules, records),
    introduces=bool(rng.random() < 0.25),
    style=int(rng.integers(3)),
  )


def _name(rng):
  return f"{base.pick(rng, FIRST)} {base.pick(rng, LAST)}"


def _records(rng, desk, customer, rules):
  """One to three of the customer's, one of another's, ordered by id."""
  count = int(rng.integers(2, 5))
  numbers = sorted(int(n) for n in rng.choice(900, count, False) + 100)
  items = [desk.items[i] for i in rng.choice(len(desk.items), count, False)]
  other = int(rng.integers(count))
  stranger = _name(rng)
  while stranger == customer:
    stranger = _name(rng)
  return tuple(
    Record(
      id=f"{desk.letter}{number}",
      owner=stranger if i == other else customer,
      item=item,
      price=int(rng.integers(12, 100)),
      status=desk.statuses[int(rng.choice(3, p=(0.6, 0.25, 0.15)))],
      days=int(rng.integers(1, 2 * rules.days)),
      value=_value(rng, desk),
    )
    for i, (number, item) in enumerate(zip(numbers, items, strict=True))
  )


def _value(rng, desk):
  """An address, a seat or a plan."""
  if desk.values:
    return base.pick(rng, desk.values)
  return f"{int(rng.integers(2, 99))} {base.pick(rng, STREETS)} Street"


def _requests(rng, desk, customer, rules, records):
  """One request, or two about different records."""
  own = [r for r in records if r.owner == customer]
  chosen = [own[i] for i in rng.permutation(len(own))]
  first = base.pick(rng, KINDS if len(own) > 1 else KINDS[:-1])
  found = [_request(rng, desk, rules, first, chosen[0], own)]
  ends = found[0].outcome == "transfer" or first == "total"
  if len(own) > 1 and not ends and rng.random() < 0.4:
    second = base.pick(rng, KINDS[:-1])
    found.append(_request(rng, desk, rules, second, chosen[1], own))
  return tuple(found)


def _request(rng, desk, rules, kind, record, own):
  value = _value(rng, desk)
  while value == record.value:
    value = _value(rng, desk)
  outcome, fact = _outcome(desk, rules, kind, record, own)
  return Request(
    kind=kind,
    record="" if kind == "total" else record.id,
    value=value if kind == "change" else "",
    tells=bool(rng.random() < 0.6),
    reason=base.pick(rng, tuple(REASONS)),
    outcome=outcome,
    fact=fact,
  )


def _outcome(desk, rules, kind, record, own):
  """(what is to come of a request, the fact that is to be told)."""
  if kind == "price":
    return "tell", str(record.price)
  if kind == "total":
    return "tell", str(sum(r.price for r in own))
  if kind == "refund":
    if record.days > rules.days:
      return "refuse", str(record.days)
    if record.price - rules.fee > rules.most:
      return "transfer", ""
    return "do", str(record.price - rules.fee)
  if record.status != desk.statuses[0]:
    return "refuse", record.status
  return "do", ""
