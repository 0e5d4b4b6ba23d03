"""The success of weights that ship with the package, on Meta-World's MT10.

Run it with `python examples/evaluate_pretrained.py`; two episodes per task take some seconds. The
official protocol is 50 episodes per task: `python -m conal_rl.evaluate pretrained:mt10`.
"""

from conal_rl.agents import ConalSAC
from conal_rl.evaluation import evaluate_policy
from conal_rl.runs.folder import find_run

agent = ConalSAC.load_weights(find_run("pretrained:mt10") / "model", device="cpu")
actor_tree, _ = agent.derive()
for layer in range(actor_tree.depth):
    sizes = sorted((len(group) for group in actor_tree.groups(layer)), reverse=True)
    print(f"actor, layer {layer + 1}: modules for {', '.join(map(str, sizes))} tasks")

result = evaluate_policy(agent, "mt10", episodes=2, seed=42, engine="native")
for task, success in result.success.items():
    print(f"{task:28} {success:.0%}")
print(f"{'mean':28} {result.mean_success:.0%}")
