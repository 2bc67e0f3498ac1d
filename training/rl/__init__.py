"""SO-GRPO: reinforcement learning of when to say `<SEG>` and of what to say before it (docs/so-grpo.md).

    recipe.py     the switches                       advantage.py  GAE, group advantage, their mixture
    prompts.py    what is asked                      loss.py       clipped loss, KL, critic, pathwise term
    rollout.py    G answers to each prompt           probes.py     stop regret
    policy.py     log-probabilities with gradient    train.py      one step after another, resumable
    rewards.py    what an answer is worth            toy.py        the same estimators on a task that is solved
    value.py      what is still to be expected
"""
