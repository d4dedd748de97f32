r"""
用汉字做算术
============

我们从零训练一个 GPT，让它一个字一个字地写出「三十五加十二等于四十七」。数据由程序生成，
对错可以逐题核对，所以最后得到的是确切的正确率，还能看到它错在哪里、为什么错。

两个 CPU 核心上三四分钟，不需要下载任何东西。读之前只需知道 GPT 根据前文预测下一个字；
想看它内部怎么算，先读 ``examples/what_a_gpt_is.py``。
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # 不显示 TensorFlow 关于本机的提示

import random
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np

import kgpt

LARGEST = 99  # 加数和被减数最大是多少
EPOCHS = 20  # 训练集读几遍
SIZE = {"num_layers": 2, "num_heads": 4, "hidden_dim": 128}
RUN = Path("runs/chinese_arithmetic")

RUN.mkdir(parents=True, exist_ok=True)
keras.utils.set_random_seed(0)

# %%
# 数的写法
# --------
#
# 汉字数词很规整，但有三处要留心：十到十九不写「一十」；个位是零时不写出来（二十，不是二十零）；
# 一百以上十位是零时要补一个「零」（一百零五）。模型要学的不只是加法，还有这些写法。

DIGITS = "零一二三四五六七八九"


def numeral(n):
    """0 到 999 的汉字写法。"""
    hundreds, tens, units = n // 100, n // 10 % 10, n % 10
    text = f"{DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += ("" if tens == 1 and not hundreds else DIGITS[tens]) + "十"
    elif hundreds and units:
        text += "零"
    return text + (DIGITS[units] if units or not n else "")


print([numeral(n) for n in (0, 7, 10, 18, 20, 35, 100, 105, 110, 198)])

# %%
# 题目
# ----
#
# 一百以内所有的加法，以及结果不为负的减法。一道题分成两半：题面「三十五加十二等于」
# 和答案「四十七」。

problems = []  # (题面, 答案, a, 运算, b)
for a in range(LARGEST + 1):
    for b in range(LARGEST + 1):
        problems.append((f"{numeral(a)}加{numeral(b)}等于", numeral(a + b), a, "加", b))
        if a >= b:
            problems.append((f"{numeral(a)}减{numeral(b)}等于", numeral(a - b), a, "减", b))
random.Random(0).shuffle(problems)
print(f"共 {len(problems):,} 题，例如：")
for question, answer, *_ in problems[:5]:
    print(question + answer)

# %%
# 拿出一成做考题，训练时绝不出现。这里有个陷阱：「三加五」和「五加三」答案一样，如果一个在训练集、
# 一个在考题里，模型背下来就能答对。所以按「一对数」来分，两种次序一起进考题。


def pair(problem):
    _, _, a, operation, b = problem
    return operation, min(a, b), max(a, b)


pairs = sorted({pair(problem) for problem in problems})
held_out = set(random.Random(1).sample(pairs, len(pairs) // 10))
train = [problem for problem in problems if pair(problem) not in held_out]
test = [problem for problem in problems if pair(problem) in held_out]
print(f"训练 {len(train):,} 题，考试 {len(test):,} 题")

# %%
# 一字一个 token
# --------------
#
# 通常的分词器（BPE）会把常见的字串合并成一个 token，比如「等于」。算术恰恰要求看清每一位，
# 所以这里用 ``style="characters"``：每个字就是一个 token，词表由数据里出现过的字组成。

texts = [question + answer for question, answer, *_ in problems]
tokenizer = kgpt.Tokenizer.train(texts, style="characters")
ids = tokenizer.encode("三十五加十二等于四十七")
print(f"词表共 {tokenizer.vocabulary_size} 个 token，其中有文本结束符等特殊符号")
print(ids, "->", [tokenizer.decode([token]) for token in ids])

# %%
# ``kgpt.data.completions`` 把题面和答案接起来，并且只让答案（和结束符）计入损失。题面是随机的，
# 「三十五」后面是「加」还是「减」无从预测，学它是白费力气。
#
# .. math:: \text{损失} = -\frac{1}{n}\sum_{i \in \text{答案}} \log P(t_i \mid t_1 \dots t_{i-1})
#
# 看一个批次：``y`` 是要预测的下一个字，权重为 1 的才算数。

batches = kgpt.data.completions(
    [question for question, *_ in train],
    [answer for _, answer, *_ in train],
    tokenizer,
    sequence_length=24,
    batch_size=128,
    seed=0,
)
x, y, weights = next(iter(batches))
token_ids, y, weights = (np.asarray(array) for array in (x["token_ids"], y, weights))
print("token_ids", token_ids.shape, " y", y.shape, " weights", weights.shape)
print(
    "读到的：",
    tokenizer.decode(token_ids[0][np.asarray(x["padding_mask"])[0].astype(bool)].tolist()),
)
print("要学的：", tokenizer.decode(y[0][weights[0] > 0].tolist()))

# %%
# 模型和训练
# ----------
#
# 两层、宽 128，四十万个参数，只有 GPT-1 的三百分之一。一层恐怕不够：
# 先要认出哪个字是哪个数的哪一位，才谈得上把它们相加。
#
# - 学习率 2e-3：小模型受得住大步子；前十分之一逐渐升上去，之后按余弦降到 0。
# - 权重衰减 0.1：逼着模型去找规律，而不是给每道题记一条。
# - 不用 dropout：题目没有噪声，答案只有一个。

backbone = kgpt.GPTBackbone(tokenizer.vocabulary_size, max_sequence_length=24, dropout=0.0, **SIZE)
lm = kgpt.CausalLM(backbone, tokenizer=tokenizer)
lm.compile(
    kgpt.recipes.pretraining_optimizer(
        EPOCHS * len(batches), learning_rate=2e-3, weight_decay=0.1, beta_2=0.98
    )
)
print(f"{lm.count_params():,} 个参数")

# %%
# 损失小不等于算得对：一个字错，整题就错。所以每隔几遍考一次试。考法和人一样：给题面，
# 让它自己往下写（``sampler="greedy"``，每一步取最可能的字），和答案逐字比较，全对才算对。


def write_answers(some):
    return lm.generate(
        [question for question, *_ in some], 8, sampler="greedy", return_prompt=False
    )


def is_right(some):
    """每题是否全对，bool 数组。"""
    answers = write_answers(some)
    return np.array([a == problem[1] for a, problem in zip(answers, some, strict=True)])


def has_carry(problem):
    """个位相加满十要进位，个位不够减要借位。"""
    _, _, a, operation, b = problem
    return a % 10 + b % 10 >= 10 if operation == "加" else a % 10 < b % 10


kinds = {
    "加法，不进位": [p for p in test if p[3] == "加" and not has_carry(p)],
    "加法，进位": [p for p in test if p[3] == "加" and has_carry(p)],
    "减法，不借位": [p for p in test if p[3] == "减" and not has_carry(p)],
    "减法，借位": [p for p in test if p[3] == "减" and has_carry(p)],
}


class Exam(keras.callbacks.Callback):
    """每隔几遍考一次试。"""

    def __init__(self, every):
        super().__init__()
        self.every, self.epochs, self.scores = every, [], []

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            self.epochs.append(epoch + 1)
            self.scores.append([is_right(some).mean() for some in kinds.values()])
            marks = "  ".join(
                f"{name} {score:.1%}" for name, score in zip(kinds, self.scores[-1], strict=True)
            )
            print(f"第 {epoch + 1:>2} 遍，损失 {logs['loss']:.3f}：{marks}")


exam = Exam(every=max(1, EPOCHS // 8))
lm.fit(batches, epochs=EPOCHS, callbacks=[exam], verbose=0)
lm.save(RUN / "lm.keras")

# %%
# 它是怎么学会的
# --------------
#
# 横轴是读了几遍，纵轴是考试的正确率。实线是加法，虚线是减法；蓝色不用进位（借位），橙色要。

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
colours, lines = ("#0072B2", "#D55E00") * 2, ("-", "-", "--", "--")
labels = ("a + b", "a + b, carry", "a - b", "a - b, borrow")
for scores, colour, line, label in zip(
    np.array(exam.scores).T, colours, lines, labels, strict=True
):
    axes.plot(exam.epochs, scores, line, marker=".", color=colour, label=label)
axes.yaxis.set_major_formatter("{x:.0%}")
axes.set(xlabel="epochs", ylabel="exact answers", ylim=(0, 1.02))
axes.grid(alpha=0.3)
axes.legend()
figure.savefig(RUN / "learning.png", dpi=120)

# %%
# 人觉得进位难，模型却不：两条加法的线最后并在一起。我们从高位写起，
# 写十位时就得先知道个位会不会满十，所以每道题它都得先在「心里」把个位加一遍，进不进位都一样。
# 真正落后的是减法。减法的题只有一半多（结果不能为负），次序还不能交换，见过的例子少，学得就慢。
#
# 它错在哪里
# ----------
#
# 加法考题一张图：横轴是 b，纵轴是 a，灰点答对，橙色叉答错。如果它是背的，错题会到处都是；
# 如果它懂规律，错题会聚在某些地方。

additions = kinds["加法，不进位"] + kinds["加法，进位"]
right = is_right(additions)
a, b = np.array([(problem[2], problem[4]) for problem in additions]).T
figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
axes.scatter(b[right], a[right], s=6, color="#BBBBBB", label="right")
axes.scatter(b[~right], a[~right], s=22, color="#D55E00", marker="x", label="wrong")
axes.set(xlabel="b", ylabel="a", aspect="equal")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
figure.savefig(RUN / "mistakes.png", dpi=120)

# %%
# 错题聚在左下角和两条边上，那里有一个数小于二十。大的数有几千道题，写法都是「几十几」；
# 小的数写法是另外几种（五、十、十五），每种的题都少，「十」字还挪了位置。对人最容易的题，
# 对它反而最难，因为它见得最少。
#
# 再逐题看。错的答案和对的差多少？差十，是进位错了；差一，是个位没对准；「不成数」
# 是写出来的字串根本不是一个数。

VALUES = {numeral(n): n for n in range(1000)}
differences = []
answers = write_answers(test)
for problem, answer in zip(test, answers, strict=True):
    if answer == problem[1]:
        continue
    differences.append(VALUES[answer] - VALUES[problem[1]] if answer in VALUES else "不成数")
    if len(differences) <= 8:
        print(f"{problem[0]}{answer}，应为{problem[1]}")
print(f"\n{len(test)} 道考题错了 {len(differences)} 道")
for difference in sorted(set(differences), key=differences.count, reverse=True)[:6]:
    print(f"差 {difference}：{differences.count(difference)} 题")

# %%
# 差一差二的最多：不是忘了进位，而是个位算得不够准。
#
# 它自己知道不知道？看它给正确答案的每个字的概率。``lm.score`` 给出的是对数，取指数就是概率。
# 前两题答对了，每个字都接近 1。后两题答错了：有的是某个字的概率很小，它拿不准；
# 有的每个字都不小，错在写完之后没有停下（「二十」写成了「二十一」）。

wrong = [problem for problem, answer in zip(test, answers, strict=True) if answer != problem[1]]
right = [problem for problem in test if problem not in wrong]
for question, answer, *_ in right[:2] + wrong[:2]:
    logs = lm.score(answer, prompts=question, reduction="none")
    characters = "  ".join(
        f"{character} {np.exp(log):.2f}" for character, log in zip(answer, logs, strict=True)
    )
    print(f"{question}：{characters}")

# %%
# 出了范围呢？
# ------------
#
# 训练里最大的加数是 99。给它几道更大的，人会的，它会吗？

for a, b in ((LARGEST + 1, 5), (LARGEST + 21, 17), (2 * LARGEST, 2 * LARGEST)):
    question = f"{numeral(a)}加{numeral(b)}等于"
    print(f"{question}{write_answers([(question,)])[0]}，应为{numeral(a + b)}")

# %%
# 不会。它学到的是「两位数怎么加」，不是「加法」。没见过的位数、没见过的位置，规律用不上去。
# 这不只是小模型的毛病：训练数据的边界在哪里，模型的边界大致就在哪里。考试要考边界之内的，
# 也要考边界之外的。
#
# 还可以试试
# ----------
#
# - 把小于二十的数的题每道抄五遍放进训练集，左下角的错题会少吗？别的地方会变差吗？
# - 答案倒着写，先写个位（「四十七」写成「七十四」），进位还难吗？为什么？
# - 只用一半的题训练（把 ``len(pairs) // 10`` 改成 ``len(pairs) // 2``），看它是懂了还是背的。
# - ``num_layers`` 改成 1。进位还学得会吗？
# - 加上乘法：九九表只有八十一题，它是算出来的还是背下来的？怎样设计考题才分得清？
# - 先让它写过程再写答案（「五加二等于七，三十加十等于四十，四十七」），和直接写答案比一比。
#
# 接下来：``examples/your_own_parts.py`` 教你换上自己的输出层、自己的块、自己的损失和训练循环。
