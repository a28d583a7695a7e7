/* A run's traces, asked for piece by piece and kept: files, a file's rollouts in brief, one rollout, and the
   top tokens at a window of its positions. What one address answers may hold several of these at once. */

export class TraceSource {
  constructor(address) {
    this.address = address;
    this.answers = new Map();
  }

  async files(anew = false) {
    if (anew) this.answers.delete(this.address);
    return (await this.ask({})).files;
  }

  async brief(key) {
    return (await this.ask({ key })).rollouts;
  }

  rollout(key, rollout) {
    return this.ask({ key, rollout });
  }

  /* Both sides' top tokens at a position: {student: [...], teacher: [...]} of tokens with both logprobs. */
  async pairs(key, rollout, position, size) {
    const start = Math.floor(position / size) * size;
    const { top } = await this.ask({ key, rollout, start });
    return pairsAt(top, position - top.start);
  }

  async ask(query) {
    const asked = new URLSearchParams(query).toString();
    const address = asked ? `${this.address}?${asked}` : this.address;
    if (!this.answers.has(address)) this.answers.set(address, this.fetch(address));
    try {
      return await this.answers.get(address);
    } catch (error) {
      this.answers.delete(address);
      throw error;
    }
  }

  async fetch(address) {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.json();
  }
}

function pairsAt(top, index) {
  const { width } = top;
  const cut = (name) => top[name].slice(index * width, (index + 1) * width);
  const side = (ids, own, other) => {
    const owns = cut(own);
    const others = cut(other);
    return cut(ids).map((id, at) => ({
      id,
      text: top.texts[id],
      own: owns[at],
      other: others[at],
    }));
  };
  return {
    student: side("student_top_ids", "student_top_logprobs", "student_top_teacher_logprobs"),
    teacher: side("teacher_top_ids", "teacher_top_logprobs", "teacher_top_student_logprobs"),
    ranks: { student: top.student_rank[index], teacher: top.teacher_rank[index] },
  };
}
