"""`ConalSAC` used like any algorithm of Stable-Baselines3: learn, callbacks, evaluate, save, load.

It searches a tree for seven CartPole variants, then trains the tree. Run it with
`python examples/conal_sac.py`; it takes less than a minute, too short to balance every pole.
"""

from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy

from conal_rl.agents import ConalSAC
from conal_rl.envs import make

env = make("cartpole", seed=0)
settings = {
    "widths": (32, 32),
    "critic_range": (-1.0, 6.0),  # lowest and highest scaled return
    "reward_scale": 0.025,
    "learning_rate": 2e-3,
    "batch_size": 32,  # transitions of each task
    "learning_starts": 100,  # steps of each task
    "seed": 0,
    "device": "cpu",
}

agent = ConalSAC(env=env, **settings)  # without a tree, `learn` searches one
agent.learn(2_100)
tree = agent.derive()
print(tree[0])

agent = ConalSAC(env=env, tree=tree, **settings)
agent.learn(4_900, callback=StopTrainingOnMaxEpisodes(max_episodes=20))
agent.save("cartpole.zip")
agent = ConalSAC.load("cartpole.zip", env=env)
mean, deviation = evaluate_policy(agent, env, n_eval_episodes=14)
print(f"steps balanced in an episode: {mean:.0f} +- {deviation:.0f}")
