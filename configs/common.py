"""The base config, its presets and the parser of `configs/X.py:ARG`."""

from ml_collections import config_dict

from pivotrl_jax.verifiers.verify import VERIFIERS

_ARGUMENTS = {"tiny": False, "paper": False, "seed": 0}


def parse_arg(arg: str) -> dict[str, object]:
  """`tiny,seed=3` -> {"tiny": True, "paper": False, "seed": 3}.

  Raises:
    ValueError: an unknown name, or a value of the wrong type.
  """
  found = dict(_ARGUMENTS)
  for part in filter(None, arg.split(",")):
    name, given, value = part.partition("=")
    if name not in _ARGUMENTS:
      raise ValueError(
        f"config argument {name!r}; expected some of {', '.join(_ARGUMENTS)}"
      )
    kind = type(_ARGUMENTS[name])
    if kind is bool:
      if given and value not in ("True", "False"):
        raise ValueError(f"config argument {part!r}; expected True or False")
      found[name] = value != "False"
    else:
      try:
        found[name] = kind(value)
      except ValueError as error:
        raise ValueError(
          f"config argument {part!r}; expected {name}={kind.__name__}"
        ) from error
  if found["tiny"] and found["paper"]:
    raise ValueError("config arguments tiny and paper; expected one of them")
  return found


def _section(**values) -> config_dict.ConfigDict:
  return config_dict.ConfigDict(values)


def _options(defaults):
  """A verifier's options; the one that is None by default takes a float."""
  free = {
    k: config_dict.placeholder(float) for k, v in defaults.items() if v is None
  }
  return _section(**defaults | free)


def base(domain: str, arg: str) -> config_dict.ConfigDict:
  """The config of a domain, by preset."""
  given = parse_arg(arg)
  config = _embedded(domain)
  config.seed = given["seed"]
  if given["tiny"]:
    _tiny(config)
  if given["paper"]:
    _paper(config)
  return config


def _embedded(domain):
  """Mini policy, this machine's CPU, at most ten minutes on two cores."""
  config = config_dict.ConfigDict()
  config.domain = domain  # tau | swe | terminal | search.
  config.world = ""  # Of envs/worlds.py; "" = the domain's own.
  config.seed = 0  # Every draw is a function of it.
  config.method = "pivotrl"  # What `train` does: pivotrl | sft | e2e.
  config.select = "difficult"  # difficult | mixed | random.
  config.reward = "functional"  # functional | strict.
  config.optimizer = "adam"  # adam | natural (pivotrl only).
  config.data = _section(
    format="auto",  # world | auto | a format of data/importers.
    path="",  # File or folder of trajectories; it goes before a world.
    tools="",  # JSON file of schemas, for trajectories that come without.
    trajectories=0,  # Most to take; 0 = all, of a world 100.
    successful_only=True,  # Failed trajectories are no demonstrations.
    max_prompt_tokens=16384,  # Longer prefixes are left out, and said so.
    reasoning="keep",  # Which turns have theirs: keep | last | drop.
    empty_thinking="keep",  # The template's empty blocks: keep | drop.
  )
  config.model = _section(
    path="",  # Hugging Face directory; "" = the mini policy.
    chat_template="",  # Jinja file; "" = the tokenizer's own.
    template_kwargs="{}",  # JSON: further variables of the template.
    dtype="float32",  # Of activations: float32 | bfloat16.
    # What computes it: auto | dense | xla | fine | pallas | cudnn.
    attention="auto",
    # What the backward pass computes again: none (False) | full (True), whole
    # layers | dots, all but what their matrices give.
    remat=config_dict.FieldReference(False, field_type=object),
    scan_layers=False,  # Of a step: layers of one kind are a loop.
  )
  config.engine = _section(
    name="jax",  # jax (in this process) | sglang (servers at engine.urls).
    batch_tokens=65536,  # jax: most prompt tokens of a batch, and kept.
    batch_rows=256,  # jax: most branches of a sampling batch.
    # The rest is for sglang; its keys: $PIVOTRL_SGLANG_KEY, .._ADMIN_KEY.
    urls="http://127.0.0.1:30000",  # Servers, with commas between.
    router="",  # Address that generates in their stead.
    weights="",  # Folder that the servers see too; "" = a temporary one.
    tolerance=0.0,  # Of log-probs at a hand-over; 0 = by model.dtype.
    deterministic=True,  # Insist on servers that honour seeds.
    stale="refuse",  # Completions of other weights: refuse | correct.
    release=False,  # Servers free the card's memory while a step trains.
    rows_per_request=1024,  # Most.
    concurrency=4,  # Most requests at once at a server.
    timeout=600.0,  # Seconds of a request, or of a hand-over.
    retries=5,  # Further attempts of one.
    patience=300.0,  # Seconds to wait for a server to come up.
  )
  config.warm_start = _section(
    steps=0,  # SFT steps before profiling; 0 = none.
    trajectories=20,  # The first so many.
    reuse=False,  # Profile those as well.
    learning_rate=1e-3,
  )
  config.profile = _section(
    group_size=8,  # K, samples a candidate.
    trajectories=0,  # Most to profile; 0 = all.
    trajectories_per_batch=16,  # Whole trajectories an engine call.
    part="",  # I/N, such as 3/16: profile that part alone; "" = all.
    parts="",  # Workdirs of all parts, with commas between or a pattern such
    # as runs/parts/*: their profiles in place of sampling.
    # By the policy in training, which then trains on what the same rule keeps:
    again_every=0,  # Steps between two profiles; 0 = never.
    again_below=0.0,  # Once groups' mean std is under so much of its first 20
    # steps' mean, such as 0.5; 0 = never.
  )
  config.pivots = _section(
    threshold=0.6,  # lambda_diff: keep means strictly under it.
    keep_all_fail=False,  # Also keep candidates that never succeed.
    count=0,  # Most pivots, a uniform sample; 0 = all.
    min_std=1e-3,  # Rewards whose std is not above it are all alike.
  )
  config.verifier = _section(
    name="single_step",  # A key of verifiers/verify.py.
    setting="default",  # default | compat (the original's rewards).
    judge=_section(  # For terminus_judge; its token: $PIVOTRL_JUDGE_KEY.
      url="",  # OpenAI-compatible address, ending in /v1; "" = no judge.
      model="",
      timeout=60.0,  # Seconds of an attempt.
      retries=3,
      concurrency=8,  # Most requests at once.
      max_tokens=1024,
      most_failed=0.1,  # Share of samples without a verdict that stops a stage.
    ),
    # The options of each, such as verifier.single_step.allow_subset.
    **{name: _options(given) for name, (_, given) in VERIFIERS.items()},
  )
  config.rollout = _section(
    pivots_per_step=16,  # B.
    group_size=8,  # G.
    max_tokens=96,  # Of an action.
    cut_off="fail",  # Longer ones: fail (reward 0) | mask (out of the loss).
    temperature=1.0,
    top_p=1.0,
    top_k=0,  # 0 = the whole vocabulary.
  )
  config.sft = _section(turns=64)  # Turns a step of SFT.
  config.e2e = _section(  # End-to-end GRPO in the world.
    tasks=0,  # Of its training split; 0 = as many as data.trajectories.
    tasks_per_step=4,  # rollout.group_size whole episodes of each.
    max_turns=8,  # Of an episode.
  )
  config.train = _section(
    steps=40,  # More than were taken: training goes on.
    # WORKDIR or WORKDIR/STEP of another run: training goes on from that
    # checkpoint's parameters, optimizer and step; "" = the starting policy,
    # which stays the reference either way.
    init="",
    learning_rate=3e-4,  # Constant after the warm-up.
    warmup_steps=5,
    weight_decay=0.0,
    clip_norm=1.0,  # Of the gradient; 0 = none.
    advantage="grpo",  # grpo | loo | rloo | dr_grpo.
    min_std=1e-3,  # A group whose rewards' std is not above it has none.
    clip_low=0.2,
    clip_high=0.2,
    kl="k3",  # Estimator of the KL to the reference: k1 (log only) | k2 | k3.
    kl_coef=0.0,
    loss_norm="token",  # token | sequence | constant.
    importance_cap=0.0,  # Truncated importance weights; 0 = off.
    importance_floor=0.0,
    reject_gap=0.0,  # Actions with a token whose log-prob in the engine is
    # farther than this from the trainer's weigh nothing; 0 = off.
    mismatch_warning=0.1,  # Of the 99th percentile of that gap; 0 = none.
    updates_per_batch=1,  # Optimizer steps on one batch of rollouts.
    micro_batches=1,  # Gradient accumulation, at least.
    batch_tokens=1024,  # Prompt tokens of a device in a micro-batch, about.
    branch_tokens=0,  # Action tokens of a device at a time, about: the rest of
    # what branches off its prompts is run after them; 0 = all at once.
    logits_chunk=512,  # Rows of logits that a device has at a time.
    parallel="jit",  # jit (one device) | pmap | sharded.
    # Devices along each axis, for sharded; -1 = what the others leave.
    mesh=_section(
      data=1,  # Each holds all that the other axes divide.
      fsdp=-1,  # Parameters and moments are divided, gathered where used.
      expert=1,  # As fsdp, but each keeps to its own experts of a layer.
      tensor=1,  # Share each matrix and each line of a batch.
    ),
    lora_rank=0,  # Train adapters of this rank alone; 0 = all parameters.
    lora_alpha=32.0,  # Of them lora_alpha / lora_rank times is added.
    lora_targets="q_proj,k_proj,v_proj,o_proj",  # Matrices with one; further:
    # gate_proj, up_proj, down_proj, but for those of experts.
    # Of a mixture of experts alone:
    router_aux_loss_coef=0.0,  # Of the load-balance loss; 0 = none.
    router_count="rows",  # A prompt's token counts in that loss and in router/
    # as often as rows have it (rows) or as it is computed (once).
    freeze_router=False,  # Routers stay as they are.
    replay_routes=False,  # Train on the experts that the sampler chose.
    save_every=20,  # Steps between checkpoints.
    keep_checkpoints=2,  # The newest.
    keep_best=0,  # Further ones, of the highest mean of best_by since the one
    best_by="rollout/reward_mean",  # before: a name in metrics.jsonl, or with
    # a - before it, of the lowest.
    keep_groups=16,  # Groups a step that rollouts.jsonl keeps; 0 = none.
    log_every=5,
    natural_every=20,  # Steps between two natural-gradient norms; 0 = never.
    natural_groups=4,  # Groups measured then, and as many at random turns.
    natural_directions=8,  # Random directions of their scores.
    natural_damping=1.0,  # Of their Fisher matrix, in its mean eigenvalue.
    # Steps between two comparisons with the reference policy (train/kl,
    # ordering/, heldout/); 0 = never. Without kl_coef the others are spared it.
    watch_every=1,
    watch_prompts=4,  # Held-out prompts whose order is watched; 0 = none.
    watch_actions=8,  # Actions sampled on each from the reference.
  )
  config.natural = _section(  # What a step does for optimizer=natural.
    learning_rate=1.0,  # Of the natural direction, before the trust region.
    max_kl=3e-3,  # Trust region: measured KL of a step, nats a token.
    damping=0.1,  # Of the Fisher matrix, in its curvature along the gradient.
    iterations=6,  # Most conjugate gradient steps.
    groups=4,  # Groups of the step whose prefixes make the Fisher matrix.
    tries=5,  # Most shorter steps where the measured KL is too large.
  )
  config.evaluation = _section(
    split="eval",  # Of tasks and questions: eval | validation (to tune on).
    tasks=200,  # Held-out tasks of the world; 0 = none.
    seeds=1,  # Episodes a task.
    temperature=0.6,  # Of actions and answers; rollouts keep their own.
    max_turns=8,
    questions=200,  # Out of domain, spread over all suites; 0 = none.
  )
  config.serve = _section(  # Its keys: $PIVOTRL_SERVE_KEY, .._ADMIN_KEY.
    host="127.0.0.1",
    port=30000,  # 0 = any free one.
    model="policy",  # What clients call it.
    record="",  # File that every exchange is appended to; also --record.
    context=4096,  # Most tokens of a prompt and its completion.
    slice_tokens=32,  # Of an engine call; then others may join.
    batch_rows=64,  # Most completions of an engine call.
    queue_rows=4096,  # Most completions that wait or run.
    max_body=64 << 20,  # Bytes of a request.
    max_n=128,  # Most completions of a prompt.
  )
  config.dry_run = _section(  # What a step would take; compiles, runs nothing.
    meshes="64xh100,v5p-64",  # COUNTxCARD or TPU slices; see dry_run/cards.py.
    model="qwen3-30b-a3b",  # A shape, where model.path gives no config.json:
    # qwen3-30b-a3b | qwen3-1.7b | qwen3-0.6b.
    prompts="32768,131072",  # Tokens of a prompt, one after the other.
    layers="",  # Compiled: all, or such as 2,3,4, and a line through them.
    compiler="auto",  # auto (a Hopper's or a TPU's, where installed) | cpu.
  )
  config.report = _section(pivots=200)  # Most pivots in the page.
  return config


def _tiny(config):
  """The same path end to end, in a minute or so."""
  config.data.trajectories = 8
  config.profile.group_size = 4
  config.profile.trajectories = 8
  config.rollout.pivots_per_step = 4
  config.rollout.group_size = 4
  config.e2e.tasks_per_step = 2
  config.e2e.max_turns = 6
  config.train.steps = 3
  config.train.watch_prompts = 2
  config.train.watch_actions = 4
  config.evaluation.tasks = 8
  config.evaluation.max_turns = 6
  config.evaluation.questions = 8


def _paper(config):
  """The paper's scale (section 2): accelerators and a checkpoint."""
  config.data.max_prompt_tokens = 32768
  config.data.format = "auto"
  config.data.path = ""
  config.data.trajectories = 0
  config.model.dtype = "bfloat16"
  config.model.remat = True
  config.model.scan_layers = True
  config.profile.group_size = 16
  config.profile.trajectories = 0
  config.rollout.pivots_per_step = 64
  config.rollout.group_size = 16
  config.rollout.max_tokens = 4096
  config.engine.name = "sglang"
  config.engine.rows_per_request = 16
  config.engine.concurrency = 64
  config.train.steps = 360
  config.train.learning_rate = 1e-6
  config.train.warmup_steps = 10
  config.train.parallel = "sharded"
  config.train.batch_tokens = 32768
  config.evaluation.tasks = 0
  config.evaluation.questions = 0
