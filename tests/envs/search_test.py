"""The search world: its encyclopedias and its questions."""

from pivotrl_jax.envs import base
from pivotrl_jax.envs.search import corpus as corpus_lib
from pivotrl_jax.envs.search import environment
from pivotrl_jax.envs.search import tasks


def test_articles_say_their_facts_and_name_each_other():
  found = corpus_lib.make("train", 0)
  assert len(found.articles) == sum(corpus_lib.COUNTS.values())
  for article in found.articles.values():
    for value in article.facts.values():
      assert value in article.text, article
  for person in found.articles.values():
    if person.kind == "person":
      spouse = found.articles[person.facts["spouse"]]
      assert spouse.facts["spouse"] == person.title


def test_bm25_finds_by_rare_words_first():
  found = corpus_lib.make("train", 0)
  for article in found.articles.values():
    assert found.search(article.title, 1)[0].title == article.title
  book = next(a for a in found.articles.values() if a.kind == "book")
  query = f"book by {book.facts['author']}"
  assert book in found.search(query, environment.RESULTS)
  assert found.search("", 3) == found.search("qqq !!", 3) == []
  assert len(found.search("is a town", 3)) == 3


def test_questions_are_chains_of_two_or_three_hops():
  hops = set()
  for i in range(120):
    task = tasks.make_task(i, "eval")
    assert len(task.legs) in (2, 3)
    hops |= {leg.hop for leg in task.legs}
    assert base.split_of(task.legs[0].start) == "eval"
    assert task.legs[0].start in task.question
    for leg, after in zip(task.legs, task.legs[1:]):
      assert leg.value == after.start
    for leg in task.legs:
      assert leg.value in task.corpus.articles[leg.page].text
      assert leg.start in task.corpus.articles[leg.page].text
    # The answer is in no page that the question names.
    assert task.answer not in task.question
  assert len(hops) > 15


def test_answers_count_but_for_case_and_articles():
  assert environment.normal(" The Belton, ") == "belton"
  assert environment.normal("490 km.") == "490 km"
  assert environment.normal("Ada Berg") != environment.normal("Berg Ada")
